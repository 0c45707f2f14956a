"""Checks of given checkpoints: they exist, this account may read them, and they can be merged."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from common import hub as model_hub
from common.errors import BadInput
from pipeline import architecture, inputs, recipes
from pipeline.baselines import PAIR
from pipeline.check.finding import Finding, given, guarded, planned
from pipeline.config import Config
from pipeline.stages.adapting import of_chat_model
from train.settings import LoraSettings


def checkpoints(config: Config) -> Iterator[Finding]:
    """Given checkpoints are there, this account may read them, and their architecture goes through every stage."""
    for key, path in given(config).items():
        found = guarded(reachable, path, key)
        yield from found
        folder = described_folder(path, fetch=not any(finding.fails for finding in found))
        if folder:
            yield from guarded(fits, folder, key, path, config)


def described_folder(path: str, fetch: bool) -> Path | None:
    """Return the folder with a checkpoint's config.json and tokenizer, which are fetched from the Hub if `fetch`."""
    folder, model = model_hub.folder_at_hand(path), model_hub.parse(path, "model.path")
    if folder and (folder / "config.json").is_file():
        return folder
    if model is None or not fetch:
        return None
    from huggingface_hub import hf_hub_download

    try:
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            file = hf_hub_download(model.repo, name, revision=model.revision)
        return Path(file).parent
    except Exception:  # whatever a network can raise, and files that a model has not; other checks report both
        return None


def fits(folder: Path, key: str, path: str, config: Config) -> Iterator[Finding]:
    """Yield a causal language model of transformers whose architecture, tokenizer and length every stage can work with.

    Raises BadInput.
    """
    where = f"{key}={path}"
    described = architecture.sizes(architecture.config_of(folder, where))
    reads, stated = described["max_position_embeddings"], described["vocab_size"]
    for name, size in (("ct.block_size", config.ct.block_size), ("sft.block_size", config.sft.block_size)):
        if isinstance(reads, int) and size > reads:
            raise BadInput(f"{name}={size}: must be at most {reads}, max_position_embeddings of {where}.")
    for file in folder.glob("*.safetensors"):
        if not file.is_file():
            raise BadInput(f"{where}: {file.name} must be a file or a link to one. Save the model there again.")
        if (rows := embedding_rows(file)) is not None and isinstance(stated, int) and rows != stated:
            raise BadInput(
                f"{where}: {file.name} embeds {rows} tokens, but vocab_size in config.json is {stated}. "
                "Save the model again."
            )
    if trains_sft(config):
        architecture.check_packing(folder, where)
    architecture.check_attention(folder, where, config.compute.attention)
    if config.train.lora and key != "sft.source":  # which nothing is trained from
        architecture.check_lora(folder, where, LoraSettings(**config.train.lora.model_dump()))
    if key == "model.path":  # blocks are made with its tokenizer
        architecture.check_end(folder, where)
    if warning := architecture.beyond_embedding(folder, where):
        yield Finding(False, warning)


def trains_sft(config: Config) -> bool:
    """Return whether a cell trains on packed examples; assumed if its plan cannot be made, which another check
    reports.
    """
    cell = planned(config)
    return cell is None or any(stage.kind == "sft" for stage in cell.stages)


def embedding_rows(file: Path) -> int | None:
    """Return rows of the embedding of tokens, where a safetensors file holds it under one of its usual names."""
    from safetensors import SafetensorError, safe_open

    from merge.checkpoints.tensor_names import is_embedding

    try:
        with safe_open(file, "np") as tensors:
            names = [name for name in list(tensors.keys()) if is_embedding(name)]
            return int(tensors.get_slice(names[0]).get_shape()[0]) if names else None
    except SafetensorError:  # `partners` reports what is wrong with the file
        return None


@cache
def reachable(path: str, key: str) -> tuple[Finding, ...]:
    """Reject what cannot be read; warns of a model of the Hub that may change."""
    model = model_hub.parse(path, key)
    if model is None:
        inputs.model_files(Path(path), key)
    else:
        model_hub.check_access(model, key)
        if not model_hub.COMMIT.fullmatch(model.revision):
            pinned = f"hub:{model.repo}@{model_hub.commit(model, key, network=True)}"
            return (
                Finding(
                    False,
                    f"{key}={model}: its revision is not pinned. Set {pinned}, so that the same model is used later.",
                ),
            )
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
    chat = folders.get("sft.source")
    start = chat if method.from_ == "sft" and chat else base
    whole = of_chat_model(config, method) if chat else {}
    whole.pop("special_rows", None)  # `pair` checks the template
    stated = {**method.tries[0], **whole}
    recipe = recipes.complete(stated, start.absolute(), merged, config.seed)
    check(Recipe.from_dict(recipe, where="merge.methods"))
    yield from ()
