"""A merge as a checkpoint folder: streamed to safetensors shards, published whole by one rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import torch

from common.errors import BadInput
from common.files import fsync
from merge.auditing import Audit
from merge.io import card
from merge.io.checkpoint import TOKENIZER_FILES
from merge.recipe import Recipe
from merge.stream.engine import run
from merge.stream.survey import survey
from merge.stream.tensor_plan import Output, Plan, make_plan
from merge.stream.tensor_recipe import out_dtype
from merge.stream.threads import DEFAULT, Workers

SHARD = 5_000_000_000  # bytes
SYNC_EVERY = 0.2  # seconds
CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class FileSink:
    """Writes slices at their places in safetensors files whose headers are written first."""

    def __init__(self, folder: Path, plan: Plan, recipe: Recipe, shard_bytes: int = SHARD):
        self.folder = folder
        self.dtypes = {output.name: out_dtype(recipe, plan, output) for output in plan.outputs}
        self.files: list[Path] = []
        self.written = Event()
        self._positions: dict[str, tuple[int, int]] = {}  # name -> descriptor, offset
        self._descriptors: list[int] = []
        shards = _shards(plan.outputs, self.dtypes, shard_bytes)
        for number, outputs in enumerate(shards, 1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._lay_out(folder / name, outputs)
        if len(shards) > 1:
            weight_map = {
                output.name: file.name for file, outputs in zip(self.files, shards, strict=True) for output in outputs
            }
            total = sum(self._size(output) for output in plan.outputs)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        dtype = self.dtypes[output.name]
        descriptor, offset = self._positions[output.name]
        data = values.to(dtype).cpu().contiguous().view(torch.uint8).numpy().data
        at = offset + start * dtype.itemsize
        while data:
            done = os.pwrite(descriptor, data, at)
            data, at = data[done:], at + done

    def sync(self) -> None:
        """Have the disk take what is written, again and again until `written` is set: little is left for the end."""
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
        try:
            if hasattr(os, "posix_fallocate"):  # not on every system; there a full disk is noticed while writing
                os.posix_fallocate(descriptor, 0, 8 + len(text) + end)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                room = f"{self.folder.parent}: no room on disk for {end / 1e9:.1f} GB of weights"
                raise BadInput(f"{room}; free some, or merge elsewhere") from None
            raise
        os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)
        for output in outputs:
            self._positions[output.name] = (descriptor, 8 + len(text) + header[output.name]["data_offsets"][0])


def _shards(outputs: Sequence[Output], dtypes: dict[str, torch.dtype], limit: int) -> list[list[Output]]:
    shards: list[list[Output]] = [[]]
    filled = 0
    for output in outputs:
        size = output.numel * dtypes[output.name].itemsize
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(output)
        filled += size
    return shards


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
) -> list[Path]:
    """Merge each recipe into its own new folder, in one pass over the parents.

    A folder holds safetensors shards, config, tokenizer, generation config, model card and the recipe as merge.yml;
    with `audit`, audit.json and audit.parquet; with `checksums`, the card has the sha256 of every file read and
    written. All appear under their final names at the end; a merge that fails leaves nothing. `workers` goes over the
    tensors twice. Raises BadInput.
    """
    targets = [Path(out_dir).absolute() for out_dir in out_dirs]
    for target in targets:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BadInput(f"{target}: exists already; name a new folder or remove this one first")
    plan = make_plan(recipes)
    asides = [target.with_name(f".{target.name}.part-{os.getpid()}") for target in targets]
    try:
        audits = [Audit(recipe) if audit else None for recipe in recipes]
        surveyed = survey(plan, audits, workers)
        with ExitStack() as opened:  # closed before their folder is removed, or seen
            sinks = []
            for aside, recipe in zip(asides, recipes, strict=True):
                aside.mkdir(parents=True)
                sinks.append(FileSink(aside, plan, recipe, shard_bytes))
                opened.callback(sinks[-1].close)
            disk = opened.enter_context(ThreadPoolExecutor(len(sinks)))
            synced = [disk.submit(sink.sync) for sink in sinks]
            try:
                run(plan, sinks, audits, workers, surveyed)
            finally:
                for sink in sinks:
                    sink.written.set()
            for recipe, aside, target, sink, seen in zip(recipes, asides, targets, sinks, audits, strict=True):
                write_metadata(plan, recipe, aside, target.name, sink, seen, checksums)
            for done in synced:
                done.result()
        for aside, target in zip(asides, targets, strict=True):
            if target.exists():
                target.rmdir()
            aside.rename(target)
            fsync(target.parent)
    except BaseException:
        for aside in asides:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        plan.close()
    return targets


def write_metadata(
    plan: Plan, recipe: Recipe, aside: Path, title: str, sink: FileSink, audit: Audit | None, checksums: bool
) -> None:
    """Put everything but the weights into the folder; config.json last, since it makes the folder a model."""
    lead = plan.parents[plan.leader]
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (lead.folder / name).is_file():
            shutil.copyfile(lead.folder / name, aside / name)
    if audit is not None:
        audit.save(aside)
    recipe.save(aside / "merge.yml")
    (aside / "README.md").write_text(card.render(title, plan, recipe, sink.files, audit, checksums), encoding="utf-8")
    config = out_config(plan, recipe)
    (aside / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in aside.iterdir():
        fsync(path)
    fsync(aside)


def out_config(plan: Plan, recipe: Recipe) -> dict[str, Any]:
    """config.json of the result: the base's, with the dtype that was written and the tie that holds."""
    lead = plan.parents[plan.leader]
    config = dict(lead.config)
    floating = [output for output in plan.outputs if output.floating]
    largest = max(floating, key=lambda output: output.numel)
    config.pop("torch_dtype", None)
    config["dtype"] = str(out_dtype(recipe, plan, largest)).removeprefix("torch.")
    if lead.tied != plan.tied:
        config["tie_word_embeddings"] = plan.tied
    return config
