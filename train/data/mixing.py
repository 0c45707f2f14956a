"""Blocks of CT and of SFT mixed, so that both are learnt at once."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from train import learnt_template
from train.data.blocks import BlockFile, interleave
from train.data.packing import write_counts


def mixed_blocks(ct_dir: Path, sft_dir: Path, ct_tokens: int, out: Path) -> None:
    """Return the first `ct_tokens` of CT's blocks and all of SFT's, each kind spread evenly.

    In go two folders of blocks of one size, and their counts; out comes one like SFT's: blocks, labels, positions. The
    loss of a block of CT is on all of it, in its positions from 0 on. Raises ValueError for blocks of two sizes.
    """
    text = np.load(ct_dir / "blocks.npy", mmap_mode="r")
    sft = [np.load(sft_dir / f"{name}.npy", mmap_mode="r") for name in ("blocks", "labels", "positions")]
    size = text.shape[1]
    if sft[0].shape[1] != size:
        raise ValueError(f"{ct_dir} has blocks of {size} tokens and {sft_dir} of {sft[0].shape[1]}.")
    text = text[: -(-ct_tokens // size)]
    total = len(text) + len(sft[0])
    columns = [
        BlockFile(out / f"{name}.npy", size, column.dtype.type)
        for name, column in zip(("blocks", "labels", "positions"), sft, strict=True)
    ]
    rows = [
        iter((block, block, np.arange(size)) for block in text),
        iter(zip(*sft, strict=True)),
    ]
    for source in itertools.islice(interleave([len(text) / total, len(sft[0]) / total]), total):
        for column, values in zip(columns, next(rows[source]), strict=True):
            column.append(values)
    for column in columns:
        column.close()
    learnt_template.copy_trained_template(sft_dir, out)
    of_sft = json.loads((sft_dir / "counts.json").read_text(encoding="utf-8"))
    real = (len(text) + len(sft[0]) * of_sft["real_token_share"]) / total
    write_counts(out, blocks=total, tokens=total * size, ct_blocks=len(text), real_token_share=real)
