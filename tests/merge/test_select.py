"""Selection against a plain sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.select import NotFinite, Taker, kept, thresholds

MAGNITUDES = st.lists(st.one_of(st.floats(0, 2.0**100, width=32), st.sampled_from([0.0, 1.0, 2.0])), min_size=2, max_size=60)


@given(MAGNITUDES, st.data())
@settings(max_examples=150, deadline=None)
def test_both_ways_of_selecting_take_what_a_stable_sort_takes(values: list[float], data: st.DataObject) -> None:
    magnitude = torch.tensor(values)
    ranks = data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=4))
    cut = data.draw(st.integers(1, len(values)))
    slices = [magnitude[:cut], magnitude[cut:]]
    held = thresholds(lambda: [magnitude], ranks, len(values), resident=1000)
    streamed = thresholds(lambda: slices, ranks, len(values), resident=0)
    assert held == streamed
    for rank in ranks:
        taker = Taker(held[rank])
        thin = torch.cat([taker.thin(piece, piece) for piece in slices])
        order = magnitude.argsort(descending=True, stable=True)[:rank]
        expected = torch.zeros_like(magnitude)
        expected[order] = magnitude[order]
        assert torch.equal(thin, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_exactly_the_rank_is_kept_with_signs_and_ties(dtype: torch.dtype) -> None:
    tau = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.5, 2.0], dtype=dtype)
    magnitude = tau.float().abs()
    for rank, expected in ((3, [1, -1, 0, 0, 0, 2]), (5, [1, -1, 1, -1, 0, 2]), (1, [0, 0, 0, 0, 0, 2]), (6, [1, -1, 1, -1, 0.5, 2])):
        taker = Taker(thresholds(lambda: [magnitude], [rank], 6, 100)[rank])
        assert taker.thin(tau, magnitude).tolist() == expected


@pytest.mark.parametrize("resident", [0, 100])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_ranked(bad: float, resident: int) -> None:
    with pytest.raises(NotFinite):
        thresholds(lambda: [torch.tensor([1.0, bad, 2.0])], [1], 3, resident)


def test_kept_counts_as_mergekit_counts() -> None:
    assert [kept(0.5, 7), kept(0.01, 7), kept(1.0, 7)] == [3, 1, 7]
