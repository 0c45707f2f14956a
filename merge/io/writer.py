"""A merge as a checkpoint folder: streamed to safetensors shards, published by one rename."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from common.errors import user_errors
from common.files import fsync, write_atomic
from merge.auditing import Audit
from merge.io import card
from merge.io.config_differences import differences, places
from merge.io.file_sink import SHARD, FileSink, take_room
from merge.io.out_folder import OutFolder, discard
from merge.io.quantized import without_settings
from merge.io.sidecars import code_of, sidecars
from merge.io.token_tensors import TEXT_PARTS, bare_architecture, is_embedding
from merge.io.tokenizer_files import chosen_template, put_template, put_union
from merge.recipe import Recipe
from merge.stream.dtypes import out_dtype
from merge.stream.engine import run
from merge.stream.pieces import Selection
from merge.stream.stacking import stacked_config
from merge.stream.survey import survey
from merge.stream.tensor_plan import Plan, make_plan
from merge.stream.threads import DEFAULT, Workers

ROOM = ".room"  # a file of the staging folder that reserves space for the metadata
TOKEN_NUMBERS = ("bos_token_id", "eos_token_id", "pad_token_id")
# what configs call the number of tokens
SIZES = ("vocab_size", "padded_vocab_size", "decoder_vocab_size", "n_words", "vocab_size_per_layer_input")
METADATA, METADATA_OF_TENSOR = 1_000_000, 4_000  # bytes of card, recipe and audit, about


def write(recipe: Recipe, out_dir: str | Path, **options: Any) -> Path:
    """Merge into the new folder `out_dir` and return it; see `write_many` for the options and errors."""
    return write_many([recipe], [out_dir], **options)[0]


def write_many(
    recipes: Sequence[Recipe],
    out_dirs: Sequence[str | Path],
    *,
    audit: bool = True,
    checksums: bool = True,
    shard_bytes: int = SHARD,
    workers: Workers = DEFAULT,
    merge_yml: str | None = None,
) -> list[Path]:
    """Merge each recipe into its own new folder, in one pass over the parents.

    A folder has safetensors shards, config, tokenizer, generation config, model card and the recipe as merge.yml; with
    `audit`, audit.json and audit.parquet; with `checksums`, the card has the sha256 of every file read and written.
    Disk space for all of it is reserved first. All folders get their final names at the end; a failed merge leaves
    nothing. `workers` makes two passes over the tensors. merge_yml: text to write instead of the recipe. Raises
    BadInput.
    """
    folders = [OutFolder(out_dir) for out_dir in out_dirs]
    for folder in folders:
        folder.clear()
    plan = make_plan(recipes)
    try:
        with user_errors(), ExitStack() as opened:
            opened.callback(plan.close)
            audits = [Audit(recipe) if audit else None for recipe in recipes]
            sinks = []
            for folder, recipe in zip(folders, recipes, strict=True):
                sinks.append(FileSink(folder.open(), plan, recipe, shard_bytes))
            with ExitStack() as files:  # closed before their folder is removed, or seen
                files.callback(plan.close)
                for recipe, sink in zip(recipes, sinks, strict=True):
                    files.callback(sink.close)
                    sink.lay_out()
                    prepare_metadata(plan, recipe, sink.folder, METADATA + METADATA_OF_TENSOR * len(plan.outputs))
                surveyed = survey(plan, audits, workers)
                if workers.note is not None:
                    for line in differences(plan, places(plan)):
                        workers.note(line)
                _merge(plan, sinks, audits, workers, surveyed)
                for recipe, folder, sink, seen in zip(recipes, folders, sinks, audits, strict=True):
                    write_metadata(plan, recipe, sink.folder, folder.target.name, sink, seen, checksums)
                    if merge_yml is not None:
                        write_atomic(sink.folder / "merge.yml", merge_yml)
            for folder in folders:
                folder.publish()
        discard(folders)
    except BaseException:
        discard(folders)  # again, if a signal interrupted it, which happens at most once
        raise
    return [folder.target for folder in folders]


def _merge(
    plan: Plan,
    sinks: Sequence[FileSink],
    audits: Sequence[Audit | None],
    workers: Workers,
    surveyed: dict[str, Selection],
) -> None:
    """Run the pass that writes, while one thread per sink flushes written data to the disk."""
    with ThreadPoolExecutor(len(sinks)) as disk:
        synced = [disk.submit(sink.sync) for sink in sinks]
        try:
            run(plan, sinks, audits, workers, surveyed)
        finally:
            for sink in sinks:
                sink.written.set()
        for done in synced:
            done.result()


def prepare_metadata(plan: Plan, recipe: Recipe, aside: Path, room: int) -> None:
    """Write tokenizer and other files besides weights, and reserve `room` bytes for what is written at the end."""
    for place, file in plan_sidecars(plan).items():
        (aside / place).parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(file, aside / place)
    if plan.alignment is not None and plan.alignment.tokenizer is not None:
        put_union(aside, plan.alignment.tokenizer)
    if recipe.chat_template is not None:
        folders = [plan.parents[parent].folder for parent in plan.parents]
        if (template := chosen_template(recipe.chat_template, folders)) is not None:
            put_template(aside, template)
    with (aside / ROOM).open("wb") as stream:
        take_room(stream.fileno(), room)


def plan_sidecars(plan: Plan) -> dict[Path, Path]:
    """Plan the copied files by path: those of the model whose tokenizer is used, and the leader's code."""
    own, lead = plan.tokenizer_from.folder, plan.parents[plan.leader].folder
    copied = {file.relative_to(own): file for file in sidecars(own)}
    return copied | {file.relative_to(lead): file for file in code_of(lead)}


def write_metadata(
    plan: Plan, recipe: Recipe, aside: Path, title: str, sink: FileSink, audit: Audit | None, checksums: bool
) -> None:
    """Write card, recipe and audit; config.json last, since it makes the folder a model."""
    (aside / ROOM).unlink()
    if audit is not None:
        _give_back()
        audit.save(aside)
    recipe.save(aside / "merge.yml")
    text = card.render(title, plan, recipe, sink.files, audit, checksums, sink.shard_bytes)
    (aside / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    config = out_config(plan, recipe)
    (aside / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in aside.rglob("*"):
        fsync(path)
    fsync(aside)


def _give_back() -> None:
    """Return free memory of slices to the system, if the C library is glibc: pyarrow needs as much."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def out_config(plan: Plan, recipe: Recipe) -> dict[str, Any]:
    """Return config.json of the result: the base's, with the written dtype and the actual tie.

    Quantization settings are left out, as the result's weights are not quantized.
    """
    lead = plan.parents[plan.leader]
    config = without_settings(stacked_config(recipe, plan.parents) if recipe.slices else lead.config)
    floating = [output for output in plan.outputs if output.floating]
    largest = max(floating, key=lambda output: output.numel)
    config.pop("torch_dtype", None)
    if bare_architecture(config.get("architectures")):  # a class with a head contains the tensors of one without
        named = (parent.config.get("architectures") for parent in plan.parents.values())
        config |= next(({"architectures": each} for each in named if each and not bare_architecture(each)), {})
    config["dtype"] = str(out_dtype(recipe, plan, largest)).removeprefix("torch.")
    if plan.alignment is not None:
        config = _with_vocabulary(config, plan.tokenizer_from.config, plan.alignment.rows)
    if lead.says_tied != plan.tied and any(is_embedding(output.name) for output in plan.outputs):
        config["tie_word_embeddings"] = plan.tied
        if isinstance(text := config.get("text_config"), dict) and "tie_word_embeddings" in text:
            config["text_config"] = text | {"tie_word_embeddings": plan.tied}
    return config


def _with_vocabulary(config: dict[str, Any], origin: dict[str, Any], rows: int | None) -> dict[str, Any]:
    """Set the numbers of special tokens as in the tokenizer's model, and vocab_size to the number of rows."""

    def changed(part: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
        numbers = {key: source[key] for key in TOKEN_NUMBERS if key in source}
        return part | numbers | ({key: rows for key in SIZES if key in part} if rows is not None else {})

    nested = {
        key: changed(config[key], origin[key])
        for key in TEXT_PARTS
        if isinstance(config.get(key), dict) and isinstance(origin.get(key), dict)
    }
    return changed(config, origin) | nested
