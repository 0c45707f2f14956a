"""Old `.bin` checkpoints: mapped by torch.load, which with weights_only runs no code from the file."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from merge.io.checkpoint import COMPUTED, ITEM_BYTES, Checkpoint, TensorInfo, torch_dtype

if TYPE_CHECKING:
    import torch


@dataclass
class PickledCheckpoint(Checkpoint):
    """Tensors mapped from pytorch_model*.bin."""

    mapped: dict[str, torch.Tensor] = field(default_factory=dict)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.mapped[name].reshape(-1)[start:stop].clone()

    def close(self) -> None:
        self.mapped.clear()


def pickled_files(folder: Path) -> list[Path]:
    """The folder's .bin weight files; empty if it has none."""
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        return [
            folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        ]
    single = folder / "pytorch_model.bin"
    return [single] if single.is_file() else []


def open_pickled(folder: Path, config: dict[str, Any], files: list[Path]) -> PickledCheckpoint:
    """Map the files. Raises BadInput for one that is missing or damaged."""
    import torch

    codes = {torch_dtype(code): code for code in ITEM_BYTES}
    mapped: dict[str, torch.Tensor] = {}
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        if not file.is_file():
            raise BadInput(f"{file}: missing, though the index lists it; fetch the checkpoint again")
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
            raise BadInput(
                f"{file}: cannot be read ({' '.join(str(error).split())[:120]}); convert it to safetensors"
            ) from None
        for name, tensor in content.items():
            if not name.endswith(COMPUTED):
                mapped[name] = tensor
                tensors[name] = TensorInfo(name, file, codes[tensor.dtype], tuple(tensor.shape), 0)
    return PickledCheckpoint(folder, config, tensors, mapped=mapped)
