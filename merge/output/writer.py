"""Write a merge as a checkpoint folder: streamed to safetensors shards, published by one rename.

Headers are written first, with the space for all tensors reserved; slices are then written at their places."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event
from typing import Any

import torch

from common.errors import user_errors
from common.files import fsync, write_atomic
from merge.auditing import Audit
from merge.checkpoints.folder import without_quantization
from merge.checkpoints.sidecars import code_of, sidecars
from merge.checkpoints.tensor_names import TEXT_PARTS, bare_architecture, is_embedding
from merge.checkpoints.tokenizer import chosen_template, put_template, put_union
from merge.engine.outputs import Output, stacked_config
from merge.engine.passes import DEFAULT, Workers, run, survey
from merge.engine.pieces import Selection
from merge.engine.plan import Plan, make_plan, out_dtype
from merge.output import card
from merge.output.card import differences, places
from merge.output.out_folder import OutFolder, discard
from merge.recipe import Recipe

SHARD = 5_000_000_000  # bytes
SYNC_EVERY = 0.2  # seconds
CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
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
    """Run the pass that writes, while one thread per sink flushes written data to the disk.

    The threads end once their sinks are `written`; the pool waits for that. A signal may raise Stopped at any point of
    this, but only once.
    """

    def end_threads() -> None:
        for sink in sinks:
            sink.written.set()

    with ThreadPoolExecutor(len(sinks)) as disk:
        try:
            try:
                synced = [disk.submit(sink.sync) for sink in sinks]
                run(plan, sinks, audits, workers, surveyed)
            finally:
                end_threads()
        finally:
            end_threads()  # again, if a signal came meanwhile
        for done in synced:
            done.result()


def prepare_metadata(plan: Plan, recipe: Recipe, staging: Path, room: int) -> None:
    """Write tokenizer and other files besides weights, and reserve `room` bytes for what is written at the end."""
    put_sidecars(plan, recipe, staging)
    with (staging / ROOM).open("wb") as stream:
        take_room(stream.fileno(), room)


def write_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Write what the result's folder has besides weights, card and audit, so that its tokenizer can be loaded."""
    plan = make_plan([recipe])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        put_sidecars(plan, recipe, folder)
        (folder / "config.json").write_text(json.dumps(out_config(plan, recipe)), encoding="utf-8")
    finally:
        plan.close()


def put_sidecars(plan: Plan, recipe: Recipe, staging: Path) -> None:
    """Write tokenizer, templates and the other files that are copied."""
    for place, file in plan_sidecars(plan).items():
        (staging / place).parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(file, staging / place)
    if plan.alignment is not None and plan.alignment.tokenizer is not None:
        put_union(staging, plan.alignment.tokenizer)
    if recipe.chat_template is not None:
        folders = [plan.parents[parent].folder for parent in plan.parents]
        if (template := chosen_template(recipe.chat_template, folders)) is not None:
            put_template(staging, template)


def plan_sidecars(plan: Plan) -> dict[Path, Path]:
    """Plan the copied files by path: those of the model whose tokenizer is used, and the leader's code."""
    own, lead = plan.tokenizer_from.folder, plan.parents[plan.leader].folder
    copied = {file.relative_to(own): file for file in sidecars(own)}
    return copied | {file.relative_to(lead): file for file in code_of(lead)}


def write_metadata(
    plan: Plan, recipe: Recipe, staging: Path, title: str, sink: FileSink, audit: Audit | None, checksums: bool
) -> None:
    """Write card, recipe and audit; config.json last, since it makes the folder a model."""
    (staging / ROOM).unlink()
    if audit is not None:
        _give_back()
        audit.save(staging)
    recipe.save(staging / "merge.yml")
    text = card.render(title, plan, recipe, sink.files, audit, checksums, sink.shard_bytes)
    (staging / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    config = out_config(plan, recipe)
    (staging / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in staging.rglob("*"):
        fsync(path)
    fsync(staging)


def _give_back() -> None:
    """Return free memory of slices to the system, if the C library is glibc: pyarrow needs as much."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def out_config(plan: Plan, recipe: Recipe) -> dict[str, Any]:
    """Return config.json of the result: the base's, with the written dtype and the actual tie.

    Quantization settings are left out, as the result's weights are not quantized.
    """
    lead = plan.parents[plan.leader]
    config = without_quantization(stacked_config(recipe, plan.parents) if recipe.slices else lead.config)
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
        return part | {key: source[key] for key in TOKEN_NUMBERS if key in source}

    nested = {
        key: changed(config[key], origin[key])
        for key in TEXT_PARTS
        if isinstance(config.get(key), dict) and isinstance(origin.get(key), dict)
    }
    numbered = changed(config, origin) | nested
    return numbered if rows is None else with_rows(numbered, rows)


def with_rows(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a config for embeddings of so many rows."""

    def changed(part: dict[str, Any]) -> dict[str, Any]:
        return part | {key: rows for key in SIZES if key in part}

    nested = {key: changed(config[key]) for key in TEXT_PARTS if isinstance(config.get(key), dict)}
    return changed(config) | nested


class FileSink:
    def __init__(self, folder: Path, plan: Plan, recipe: Recipe, shard_bytes: int = SHARD):
        self.folder = folder
        self.dtypes = {output.name: out_dtype(recipe, plan, output) for output in plan.outputs}
        self.shard_bytes = None if shard_bytes == SHARD else shard_bytes  # where it was chosen
        self.files: list[Path] = []
        self.written = Event()
        self._positions: dict[str, tuple[int, int]] = {}  # name -> descriptor, offset
        self._descriptors: list[int] = []
        self._shards = shards(plan.outputs, self.dtypes, shard_bytes)

    def lay_out(self) -> None:
        """Create the files at their full length, with headers. Raises OSError; call `close` in every case."""
        count = len(self._shards)
        for number, outputs in enumerate(self._shards, 1):
            name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            self._lay_out(self.folder / name, outputs)
        if count > 1:
            weight_map = {
                output.name: file.name
                for file, outputs in zip(self.files, self._shards, strict=True)
                for output in outputs
            }
            total = sum(self._size(output) for outputs in self._shards for output in outputs)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            text = json.dumps(index, indent=2) + "\n"
            (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        dtype = self.dtypes[output.name]
        descriptor, offset = self._positions[output.name]
        data = values.to(dtype).cpu().contiguous().view(torch.uint8).numpy().data
        at = offset + start * dtype.itemsize
        while data:
            done = os.pwrite(descriptor, data, at)
            data, at = data[done:], at + done

    def sync(self) -> None:
        """Flush written data to the disk repeatedly until `written` is set, so that little is left for the end."""
        last = False
        while not last:
            last = self.written.wait(SYNC_EVERY)
            for descriptor in self._descriptors:
                os.fsync(descriptor)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _size(self, output: Output) -> int:
        return output.numel * int(self.dtypes[output.name].itemsize)

    def _lay_out(self, file: Path, outputs: Sequence[Output]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for output in outputs:
            start, end = end, end + self._size(output)
            header[output.name] = {
                "dtype": CODES[self.dtypes[output.name]],
                "shape": list(output.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._descriptors.append(descriptor)
        self.files.append(file)
        take_room(descriptor, 8 + len(text) + end)
        os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)
        for output in outputs:
            self._positions[output.name] = (descriptor, 8 + len(text) + header[output.name]["data_offsets"][0])


def shards(outputs: Sequence[Output], dtypes: dict[str, torch.dtype], limit: int) -> list[list[Output]]:
    """Divide tensors into files, in order, each file up to `limit` bytes."""
    listed: list[list[Output]] = [[]]
    filled = 0
    for output in outputs:
        size = output.numel * dtypes[output.name].itemsize
        if listed[-1] and filled + size > limit:
            listed.append([])
            filled = 0
        listed[-1].append(output)
        filled += size
    return listed


def take_room(descriptor: int, size: int) -> None:
    """Create a file of that length with its blocks reserved. Raises OSError if the disk is full."""
    if hasattr(os, "posix_fallocate"):  # not on every system; there a full disk is noticed while writing
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
