"""Blocks of CT and SFT in one folder: nothing lost, nothing changed, and both kinds all the way through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from train.data.blocks import Blocks
from train.data.packing import mixed_blocks, write_counts

SIZE = 4


def folders(root: Path, text: int, sft: int, size: int = SIZE) -> tuple[Path, Path]:
    """Blocks of CT are 100, 101, ...; of SFT 0, 1, ..., with their last token alone learnt."""
    for name, blocks, first in (("ct", text, 100), ("sft", sft, 0)):
        (root / name).mkdir()
        width = size if name == "sft" else SIZE
        values = np.repeat(np.arange(first, first + blocks, dtype=np.uint16)[:, None], width, axis=1)
        np.save(root / name / "blocks.npy", values)
        write_counts(root / name, blocks=blocks, tokens=values.size, real_token_share=0.5 if name == "sft" else 1.0)
    labels = np.full((sft, size), -100, dtype=np.int32)
    labels[:, -1] = np.arange(sft)
    np.save(root / "sft" / "labels.npy", labels)
    np.save(root / "sft" / "positions.npy", np.tile(np.array([0, 1, 0, 1], dtype=np.uint16)[:size], (sft, 1)))
    return root / "ct", root / "sft"


def test_every_block_is_there_once_in_its_order_and_learnt_as_it_was(tmp_path: Path) -> None:
    mixed_blocks(*folders(tmp_path, 12, 4), ct_tokens=8 * SIZE, out=tmp_path)
    rows = [{name: column.tolist() for name, column in Blocks(tmp_path)[n].items()} for n in range(12)]
    text = [row for row in rows if row["input_ids"][0] >= 100]
    sft = [row for row in rows if row["input_ids"][0] < 100]
    assert [row["input_ids"][0] for row in text] == list(range(100, 108)), "the first of CT, as many as the budget"
    assert all(row["labels"] == row["input_ids"] and row["position_ids"] == [0, 1, 2, 3] for row in text)
    assert [row["labels"] for row in sft] == [[-100, -100, -100, n] for n in range(4)]
    assert all(row["position_ids"] == [0, 1, 0, 1] for row in sft)


def test_both_kinds_are_spread_over_the_whole(tmp_path: Path) -> None:
    mixed_blocks(*folders(tmp_path, 60, 20), ct_tokens=60 * SIZE, out=tmp_path)
    of_sft = np.load(tmp_path / "blocks.npy")[:, 0] < 100
    assert of_sft.reshape(-1, 8).sum(axis=1).tolist() == [2] * 10


def test_blocks_of_two_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="blocks of 4 tokens and .* of 3"):
        mixed_blocks(*folders(tmp_path, 4, 4, size=3), ct_tokens=16, out=tmp_path)
