"""Selection against a plain sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.select import Counting, NotFinite, Pieces, Ranking, TopK, count_kept, magnitude_bits
from merge.select import rank as rank_float32

MAGNITUDES = st.lists(
    st.one_of(st.floats(0, 2.0**100, width=32), st.sampled_from([0.0, 1.0, 2.0])), min_size=2, max_size=60
)


def rank(pieces: Pieces, ranks: list[int], numel: int, dtype: torch.dtype, resident: int) -> Ranking:
    """As the survey ranks: 16 bits are counted."""
    if dtype.itemsize > 2:
        return rank_float32(pieces, ranks, numel, resident)
    counting = Counting(dtype)
    for bits in pieces():
        counting.update(bits)
    return counting.ranking(ranks)


@given(MAGNITUDES, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.data())
@settings(max_examples=200, deadline=None)
def test_every_way_of_selecting_takes_what_a_stable_sort_takes(
    values: list[float], dtype: torch.dtype, data: st.DataObject
) -> None:
    tau = torch.tensor(values).to(dtype)
    ranks = data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=4))
    cut = data.draw(st.integers(1, len(values) - 1))
    if dtype == torch.float64:  # by what float32 could not tell apart
        tau = tau * (1 + torch.arange(len(values), dtype=dtype) * 2.0**-50)
    slices = [tau[:cut], tau[cut:]]
    held = rank(lambda: [magnitude_bits(tau)], ranks, len(values), dtype, resident=1000)
    streamed = rank(lambda: map(magnitude_bits, slices), ranks, len(values), dtype, resident=0)
    assert held.thresholds == streamed.thresholds
    for k in ranks:
        top_k = TopK(held.thresholds[k])
        thin = torch.cat([top_k.take(piece, lambda piece=piece: magnitude_bits(piece)) for piece in slices])
        order = tau.argsort(descending=True, stable=True)[:k]
        expected = torch.zeros_like(tau)
        expected[order] = tau[order]
        assert torch.equal(thin, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_exactly_the_rank_is_kept_with_signs_and_ties(dtype: torch.dtype) -> None:
    tau = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.5, 2.0], dtype=dtype)
    bits = magnitude_bits(tau)
    for k, expected in (
        (3, [1, -1, 0, 0, 0, 2]),
        (5, [1, -1, 1, -1, 0, 2]),
        (1, [0, 0, 0, 0, 0, 2]),
        (6, [1, -1, 1, -1, 0.5, 2]),
    ):
        top_k = TopK(rank(lambda: [bits], [k], 6, dtype, 100).thresholds[k])
        assert top_k.take(tau, lambda: bits).tolist() == expected


@pytest.mark.parametrize("resident", [0, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_energy_is_the_sum_of_squares(dtype: torch.dtype, resident: int) -> None:
    tau = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = rank(lambda: map(magnitude_bits, tau.split(1024)), [10], 5000, dtype, resident)
    assert found.energy == pytest.approx(float(tau.double() @ tau.double()), rel=1e-5)


@pytest.mark.parametrize("resident", [0, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_not_ranked(bad: float, dtype: torch.dtype, resident: int) -> None:
    bits = magnitude_bits(torch.tensor([1.0, bad, 2.0], dtype=dtype))
    with pytest.raises(NotFinite):
        rank(lambda: [bits], [1], 3, dtype, resident)


def test_kept_counts_as_mergekit_counts() -> None:
    assert [count_kept(0.5, 7), count_kept(0.01, 7), count_kept(1.0, 7)] == [3, 1, 7]
