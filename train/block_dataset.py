"""Blocks on disk as a dataset for torch's data loader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class Blocks:
    """A map-style dataset over the memory-mapped blocks of a folder.

    A row is one block: `input_ids`, `labels`, and `position_ids` where there are any, each int64 of (block_size,).
    """

    def __init__(self, folder: Path) -> None:
        self.columns = {"input_ids": np.load(folder / "blocks.npy", mmap_mode="r")}
        for name, file in (("labels", "labels.npy"), ("position_ids", "positions.npy")):
            if (folder / file).exists():
                self.columns[name] = np.load(folder / file, mmap_mode="r")
        self.columns.setdefault("labels", self.columns["input_ids"])

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        import torch

        return {name: torch.from_numpy(column[index].astype(np.int64)) for name, column in self.columns.items()}
