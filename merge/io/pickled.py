"""Old `.bin` checkpoints, mapped by torch.load with weights_only, which runs no code of the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput, line_of, listed
from merge.io.checkpoint import ITEM_BYTES, Checkpoint, TensorInfo, torch_dtype

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


def open_pickled(folder: Path, config: dict[str, Any], files: list[Path]) -> PickledCheckpoint:
    """Map the files. Raises BadInput for a damaged file, and for one with more than plain tensors by name."""
    import torch

    mapped: dict[str, torch.Tensor] = {}
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever a damaged or foreign pickle leads to; no code of it runs
            reason = line_of(error)[:120]
            raise BadInput(f"{file}: cannot be read ({reason}). Convert it to safetensors.") from None
        if not isinstance(content, dict):
            raise BadInput(f"{file}: expected a mapping of names to tensors, got {type(content).__name__}.")
        for name, tensor in content.items():
            mapped[name] = tensor
            tensors[name] = _info(file, name, tensor)
    return PickledCheckpoint(folder, config, tensors, mapped=mapped)


def _info(file: Path, name: Any, tensor: Any) -> TensorInfo:
    """Describe a plain tensor of numbers. Raises BadInput for anything else."""
    import torch

    codes = {torch_dtype(code): code for code in ITEM_BYTES}
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise BadInput(f"{file}: expected a tensor under {name!r}, got {type(tensor).__name__}.")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in codes:
        kind = "without values" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}".replace("torch.", "")
        raise BadInput(f"{file}: tensor {name} must be dense and one of {listed(ITEM_BYTES)}, got {kind}.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BadInput(
            f"{file}: tensor {name} {list(tensor.shape)} is larger than its stored data. Save the checkpoint again."
        )
    return TensorInfo(name, file, codes[tensor.dtype], tuple(tensor.shape), 0)
