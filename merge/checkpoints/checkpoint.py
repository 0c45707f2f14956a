"""A Hugging Face folder as a table of tensors that are read piece by piece.

Pieces are read with `pread`, not through a mapping: mapped pages count as the process's memory until they are dropped,
a read buffer does not grow with the model, and a file that was cut short gives an error instead of a bus error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from merge.checkpoints.tensor_names import is_embedding, is_head, is_head_bias

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F64", "F32", "F16", "BF16")
# Buffers that older savers wrote and that are computed from the config: neither merged nor required.
COMPUTED = (
    ".inv_freq", ".cos_cached", ".sin_cached", ".masked_bias", ".attn.bias", ".attention.bias", "position_ids",
    "token_type_ids", ".attn.embed_positions",
)  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """The location of a tensor. dtype: safetensors code; offset: bytes from the start of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass
class Checkpoint:
    """An opened folder: its config and its tensors. Opened by `open_folder.open_checkpoint`."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    _files: dict[Path, int] = field(default_factory=dict)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read elements [start, stop) of tensor `name`, flat, in the file's dtype."""
        import torch

        info = self.tensors[name]
        size = ITEM_BYTES[info.dtype]
        values = torch.empty(stop - start, dtype=torch_dtype(info.dtype))
        _fill(self._open(info.file), values.view(torch.uint8).numpy().data, info.offset + start * size, info.file)
        return values

    def parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        """List the stored tensors that make up tensor `name`."""
        return [(self, name)]

    @property
    def files(self) -> set[Path]:
        """List the files of its tensors."""
        return {info.file for info in self.tensors.values()}

    def _open(self, file: Path) -> int:
        if file not in self._files:
            self._files[file] = os.open(file, os.O_RDONLY)
        return self._files[file]

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    @property
    def says_tied(self) -> bool | None:
        """Tell whether the config (or its text part) ties head and embedding; None if neither states it."""
        for config in (self.config, self.config.get("text_config")):
            if isinstance(config, dict) and isinstance(tied := config.get("tie_word_embeddings"), bool):
                return tied
        return None

    @property
    def tied(self) -> bool:
        """Tell whether the head is the embedding: a folder without a head tensor can only be loaded so."""
        return self.says_tied is not False and not any(map(is_head, self.tensors))

    @property
    def embedding(self) -> str | None:
        """Return the input embedding: the only one, or the one that encoder and decoder share; None if unknown."""
        names = list(filter(is_embedding, self.tensors))
        candidates = [name for name in names if name.endswith("shared.weight")] or names
        return candidates[0] if len(candidates) == 1 else None

    @property
    def only_head(self) -> str | None:
        """Return the head, if there is a tensor for it."""
        heads = list(filter(is_head, self.tensors))
        return heads[0] if len(heads) == 1 else None

    def source_of(self, name: str) -> str | None:
        """Return the tensor that is read as `name`: itself, or its alias; None if there is neither.

        A head may be the embedding, or the embedding may be stored as the head; an encoder's embedding may be the
        shared one, a decoder's bias that of its predictions.
        """
        if name in self.tensors:
            return name
        if is_head(name):
            return self.embedding if self.tied else None
        if is_embedding(name):
            if not any(map(is_embedding, self.tensors)):
                return self.only_head if self.says_tied is not False else None
            return self.embedding if "coder." in name or "shared." in name else None
        twin = name.replace(".decoder.bias", ".bias") if name.endswith(".decoder.bias") else name[:-4] + "decoder.bias"
        return twin if is_head_bias(name) and twin in self.tensors else None


class WrappedCheckpoint(Checkpoint):
    """Another checkpoint, of which some tensors are made otherwise than by reading them. own: these, by name."""

    def __init__(self, inner: Checkpoint, own: Mapping[str, TensorInfo], kept: Mapping[str, TensorInfo] | None = None):
        """Wrap `inner`. kept: its tensors that stay as they are (None: all)."""
        super().__init__(inner.folder, inner.config, {**(inner.tensors if kept is None else kept), **own})
        self.inner, self.own = inner, own

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        read = self.read_own if name in self.own else self.inner.read
        return read(name, start, stop)

    def parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        return self.own_parts(name) if name in self.own else self.inner.parts(name)

    def read_own(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Make elements [start, stop) of one of its own tensors."""
        raise NotImplementedError

    def own_parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        """List the stored tensors that make up one of its own tensors."""
        raise NotImplementedError

    @property
    def files(self) -> set[Path]:
        return self.inner.files

    def close(self) -> None:
        self.inner.close()


def keep_heap() -> None:
    """Call this before reading many slices: after freeing one block of this size, glibc serves smaller ones from its
    heap.

    Otherwise each slice is its own mapping, whose pages the kernel zeroes first.
    """
    import torch

    torch.empty(1 << 24, dtype=torch.uint8)


def torch_dtype(code: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype code."""
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    }[code]  # fmt: skip


def _fill(descriptor: int, buffer: memoryview, offset: int, file: Path) -> None:
    done = 0
    while done < len(buffer):
        got = os.preadv(descriptor, [buffer[done:]], offset + done)
        if got == 0:
            raise BadInput(
                f"{file}: the file changed or was cut short while it was read. Start again when nothing writes to it."
            )
        done += got
