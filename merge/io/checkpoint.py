"""A Hugging Face folder as a table of tensors that are read piece by piece.

Pieces are read with `pread`, not through a mapping: mapped pages count as the process's memory until they are dropped, a read
buffer does not grow with the model, and a file that was cut short gives an error instead of a bus error.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F64", "F32", "F16", "BF16")
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
# Buffers that older savers wrote and that are computed from the config: neither merged nor asked for.
COMPUTED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. dtype: safetensors code; offset: bytes from the start of the file."""

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
    """An opened folder: its config, its tensors, its tokenizer files. Use `open_checkpoint`."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    _files: dict[Path, int] = field(default_factory=dict)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of tensor `name`, flat, in the file's dtype."""
        import torch

        info = self.tensors[name]
        size = ITEM_BYTES[info.dtype]
        values = torch.empty(stop - start, dtype=torch_dtype(info.dtype))
        _fill(self._open(info.file), values.view(torch.uint8).numpy().data, info.offset + start * size, info.file)
        return values

    def _open(self, file: Path) -> int:
        if file not in self._files:
            self._files[file] = os.open(file, os.O_RDONLY)
        return self._files[file]

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    @cached_property
    def layers(self) -> int:
        """Number of layers, for gradients over depth."""
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if isinstance(self.config.get(key), int):
                return int(self.config[key])
        return 0

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding (the file then has no tensor of its own for it)."""
        return bool(self.config.get("tie_word_embeddings", False))

    def tokenizer_files(self) -> list[Path]:
        return [path for name in TOKENIZER_FILES if (path := self.folder / name).is_file()]


def keep_heap() -> None:
    """Call before reading many slices: having freed one block of this size, glibc serves smaller ones from its heap.

    Otherwise each slice is a mapping of its own, whose pages the kernel zeroes first.
    """
    import torch

    torch.empty(1 << 24, dtype=torch.uint8)


def torch_dtype(code: str) -> torch.dtype:
    """torch dtype of a safetensors dtype code."""
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    }[code]  # fmt: skip


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config and headers, no weights. Raises BadInput for a folder that is not a whole checkpoint."""
    if not folder.is_dir():
        raise BadInput(
            f"{folder}: no such folder; expected a Hugging Face checkpoint (config.json and model.safetensors)"
        )
    config = _json(folder / "config.json")
    if not isinstance(config, dict):
        raise BadInput(f"{folder / 'config.json'}: expected a JSON object")
    from merge.io.pickled import open_pickled, pickled_files  # it builds on this module

    if not any(folder.glob("*.safetensors*")) and (old := pickled_files(folder)):
        return open_pickled(folder, config, old)
    tensors = {name: info for file in _weight_files(folder) for name, info in read_header(file).items()}
    dropped = [name for name in tensors if name.endswith(COMPUTED)]
    for name in dropped:
        del tensors[name]
    if not tensors:
        raise BadInput(f"{folder}: the weight files hold no tensors")
    return Checkpoint(folder, config, tensors)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        data = _json(index)
        weight_map = data.get("weight_map") if isinstance(data, dict) else None
        if not isinstance(weight_map, dict):
            raise BadInput(f"{index}: no weight_map")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.is_file():
                raise BadInput(f"{file}: missing, though {index.name} lists it; fetch the checkpoint again")
        held = {name for file in files for name in read_header(file)}
        for name, file_name in weight_map.items():
            if name not in held:
                raise BadInput(f"{folder / file_name}: tensor {name} is missing, though {index.name} lists it")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise BadInput(f"{folder}: no model.safetensors, model.safetensors.index.json or pytorch_model.bin")


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensor table of a safetensors file, checked against the file's size. Raises BadInput for a damaged file."""
    damaged = f"{file}: damaged safetensors file"
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise BadInput(f"{damaged}: its header does not fit into its {size} bytes; fetch it again")
        try:
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            spans = {name: tuple(entry["data_offsets"]) for name, entry in entries.items()}
            shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in entries.items()}
            dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{damaged}: its header cannot be read ({type(error).__name__}); fetch it again") from None
    table = {}
    for name, (start, end) in spans.items():
        if dtypes[name] not in ITEM_BYTES:
            raise BadInput(
                f"{file}: tensor {name} has dtype {dtypes[name]}; merging needs one of {', '.join(ITEM_BYTES)}"
            )
        info = TensorInfo(name, file, dtypes[name], shapes[name], 8 + length + start)
        if end - start != info.nbytes or start < 0:
            raise BadInput(f"{damaged}: tensor {name} spans {end - start} bytes where its shape needs {info.nbytes}")
        if 8 + length + end > size:
            raise BadInput(
                f"{damaged}: tensor {name} ends beyond the file ({size} bytes): it was cut short, fetch it again"
            )
        table[name] = info
    return table


def _fill(descriptor: int, buffer: memoryview, offset: int, file: Path) -> None:
    done = 0
    while done < len(buffer):
        got = os.preadv(descriptor, [buffer[done:]], offset + done)
        if got == 0:
            raise BadInput(f"{file}: ended early: the file changed or was cut short while it was read")
        done += got


def _json(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f"{path}: missing; expected a Hugging Face checkpoint folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
