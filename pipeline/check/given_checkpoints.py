"""Checkpoints that are given: they are there, this account may read them, and they can be merged."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common import hub as model_hub
from common.errors import BadInput
from common.parsing import read_json
from pipeline import inputs, recipes
from pipeline.arms import PAIR
from pipeline.check.finding import Finding, given, guarded
from pipeline.config import Config


class Described(TypedDict, total=False):
    """What is looked at of a checkpoint's config.json."""

    model_type: str
    max_position_embeddings: int | None
    vocab_size: int | None


def checkpoints(config: Config) -> Iterator[Finding]:
    """Given checkpoints are there, and this account may read them."""
    for key, path in given(config).items():
        yield from guarded(reachable, path, key)
        folder = model_hub.folder_at_hand(path)
        if folder and (folder / "config.json").is_file():
            yield from guarded(fits, folder, key, path, config)


def fits(folder: Path, key: str, path: str, config: Config) -> None:
    """A model that transformers knows as a causal language model, and that reads the blocks. Raises BadInput."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    described = read_json(folder / "config.json", Described)
    if (kind := described.get("model_type")) not in KNOWN:
        raise BadInput(
            f"{key}={path}: model_type {kind!r} of its config.json is no causal language model of transformers; "
            "code that comes with a checkpoint is not run"
        )
    reads = described.get("max_position_embeddings")
    for name, size in (("ct.block_size", config.ct.block_size), ("sft.block_size", config.sft.block_size)):
        if isinstance(reads, int) and size > reads:
            raise BadInput(f"{name}={size}: {key}={path} reads {reads} tokens (max_position_embeddings)")
    for file in folder.glob("*.safetensors"):
        if not file.is_file():
            raise BadInput(f"{key}={path}: {file.name} is no file, or a link to none; save the model there again")
        rows, said = embedding_rows(file), described.get("vocab_size")
        if rows is not None and isinstance(said, int) and rows != said:
            raise BadInput(f"{key}={path}: {file.name} embeds {rows} tokens, config.json says vocab_size {said}")


def embedding_rows(file: Path) -> int | None:
    """Rows of the embedding of tokens, where a safetensors file holds it under one of its usual names."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            names = [name for name in list(tensors.keys()) if name.endswith(("embed_tokens.weight", "wte.weight"))]
            return int(tensors.get_slice(names[0]).get_shape()[0]) if names else None
    except SafetensorError:  # `partners` says what is wrong with the file
        return None


@cache
def reachable(path: str, key: str) -> tuple[Finding, ...]:
    """Refuses what cannot be read; warns of a model of the hub that may change."""
    model = model_hub.parse(path, key)
    if model is None:
        inputs.model_files(Path(path), key)
    else:
        model_hub.check_access(model, key)
        if not model_hub.COMMIT.fullmatch(model.revision):
            pinned = f"hub:{model.repo}@{model_hub.commit(model, key, network=True)}"
            return (Finding(False, f"{key}={model}: is not pinned; say {pinned}, so that it stays what it is"),)
    return ()


def partners(config: Config) -> Iterator[Finding]:
    """Base, CT and SFT can be merged: same tensors, same vocabulary. What is trained here is like the base."""
    from merge import Recipe, check

    folders = {key: model_hub.folder_at_hand(path) for key, path in given(config).items()}
    base = folders.get("model.path")
    if base is None or not model_hub.is_whole(base) or not config.merge.methods:
        return
    methods = list(config.merge.methods.values())
    method = next((method for method in methods if method.of == PAIR), methods[0])
    merged = {name: (folders.get(f"{name}.source", base) or base).absolute() for name in method.of}
    recipe = recipes.complete(method.tries[0], base.absolute(), merged, config.seed)
    check(Recipe.from_dict(recipe, where="merge.methods"))
    yield from ()
