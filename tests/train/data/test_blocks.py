"""Blocks: the mixture, the packing and the files, held against their definitions."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.blocks import BlockFile, best_fit, chunk, dtype_for, interleave


def order(shares: list[float], length: int) -> list[int]:
    return [source for source, _ in zip(interleave(shares), range(length), strict=False)]


FOUR_TO_ONE = np.array(order([0.8, 0.2], 200_000))


@given(st.integers(0, 199_000))
def test_four_to_one_is_exact_over_every_window_of_a_thousand_blocks(start: int) -> None:
    assert FOUR_TO_ONE[start : start + 1000].sum() == 200


@given(st.integers(1, 99))
@settings(max_examples=30)
def test_a_share_in_percent_is_exact_over_every_window_of_a_thousand_blocks(percent: int) -> None:
    counts = np.cumsum([0, *order([1 - percent / 100, percent / 100], 4000)])
    windows = counts[1000:] - counts[:-1000]
    assert set(windows.tolist()) <= {percent * 10 - 1, percent * 10, percent * 10 + 1}  # halves may fall on either side
    if (Fraction(percent, 100).denominator) % 2:
        assert set(windows.tolist()) == {percent * 10}


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=12), st.integers(1, 7))
def test_a_stream_is_cut_without_a_token_lost(pieces: list[list[int]], size: int) -> None:
    blocks = [block.tolist() for block in chunk((np.array(piece, np.uint16) for piece in pieces), size)]
    tokens = [token for piece in pieces for token in piece]
    assert [token for block in blocks for token in block] == tokens[: len(tokens) // size * size]
    assert all(len(block) == size for block in blocks)


def plain_best_fit(lengths: list[int], size: int, open_blocks: int | None) -> list[list[int]]:
    """The definition, in the fewest words."""
    window: list[tuple[int, list[int]]] = []
    done = []
    for name, length in enumerate(lengths):
        fitting = [number for number, (room, _) in enumerate(window) if room >= length]
        if fitting:
            best = min(fitting, key=lambda number: window[number][0])
            window[best] = (window[best][0] - length, [*window[best][1], name])
        else:
            window.append((size - length, [name]))
        if open_blocks is not None and len(window) > open_blocks:
            done.append(window.pop(min(range(len(window)), key=lambda number: window[number][0]))[1])
    return [*done, *(names for _, names in window)]


@given(st.lists(st.integers(1, 20), max_size=200), st.sampled_from([None, 1, 3, 64]))
def test_best_fit_is_what_it_says(lengths: list[int], open_blocks: int | None) -> None:
    assert list(best_fit(enumerate(lengths), 20, open_blocks)) == plain_best_fit(lengths, 20, open_blocks)


def test_the_longest_first_leave_less_room() -> None:
    rng = random.Random(0)
    lengths = [min(2048, max(8, int(rng.lognormvariate(5.3, 1)))) for _ in range(20_000)]
    least = sum(lengths) / 2048
    as_they_come = len(list(best_fit(enumerate(lengths), 2048, 64)))
    longest_first = len(
        list(
            best_fit(
                ((name, lengths[name]) for name in sorted(range(20_000), key=lambda name: -lengths[name])), 2048, None
            )
        )
    )
    assert least / longest_first > 0.995
    assert longest_first <= as_they_come


@given(st.integers(0, 5), st.sampled_from([np.uint16, np.uint32, np.int32]))
def test_a_file_of_blocks_is_what_numpy_writes(
    tmp_path_factory: pytest.TempPathFactory, count: int, kind: type
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    rows = np.arange(count * 7, dtype=kind).reshape(count, 7)
    file = BlockFile(folder / "ours.npy", 7, kind)
    for row in rows:
        file.append(row)
    file.close()
    np.save(folder / "numpys.npy", rows)
    assert (folder / "ours.npy").read_bytes() == (folder / "numpys.npy").read_bytes()


def test_ids_are_kept_in_the_smallest_type() -> None:
    assert dtype_for(2**16) is np.uint16 and dtype_for(2**16 + 1) is np.uint32
