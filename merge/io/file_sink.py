"""Slices of a merge, written at their places in safetensors files whose headers are written first."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import torch

from merge.recipe import Recipe
from merge.stream.dtypes import out_dtype
from merge.stream.output import Output
from merge.stream.tensor_plan import Plan

SHARD = 5_000_000_000  # bytes
SYNC_EVERY = 0.2  # seconds
CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


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
