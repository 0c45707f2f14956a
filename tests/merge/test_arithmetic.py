"""Properties of the pure functions, against definitions written out parameter by parameter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.arithmetic import (
    Consensus,
    Slack,
    apply_task_vector,
    average,
    keep_probabilities,
    merge_taus,
    row_ranks,
    slerp_coefficients,
)

# Small whole numbers: exact in float32, with many zeros and many exact ties between models.
VALUES = st.lists(st.lists(st.integers(-4, 4), min_size=6, max_size=6), min_size=2, max_size=4)
SLACK = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, math.inf])


def tensors(rows: list[list[int]]) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.float32) for row in rows]


@given(VALUES, SLACK, st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=50, deadline=None)
def test_order_of_models_does_not_matter(rows: list[list[int]], slack: float, random: object, elect: bool) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    weights, protected = [1.0, 2.0, 0.5, 4.0][: len(rows)], [False, True, False, True][: len(rows)]

    def merged(places: list[int]) -> torch.Tensor:
        how = Consensus(
            tuple(weights[i] for i in places), elect=elect, slack=Slack(slack, tuple(protected[i] for i in places))
        )
        return merge_taus([tensors(rows)[i] for i in places], how)[0]

    assert torch.equal(merged(order), merged(list(range(len(rows)))))


def test_weighted_election_votes_with_weights() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([-2.0])
    merged, _ = merge_taus([a, b], Consensus((0.9, 0.1), normalize=False, weighted=True))
    assert merged.item() == pytest.approx(0.9)
    merged, _ = merge_taus([a, b], Consensus((0.9, 0.1), normalize=False))
    assert merged.item() == pytest.approx(-0.2)


def test_task_arithmetic_and_linear_by_hand() -> None:
    base, a, b = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0]), torch.tensor([1.0, 1.0])
    tau, survivors = merge_taus([a, b], Consensus((2.0, 1.0), normalize=False, elect=False))
    assert apply_task_vector(base, tau, 0.5).tolist() == [2.0, 1.5] and survivors is None
    tau, _ = merge_taus([a, b], Consensus((2.0, 1.0), normalize=True, elect=False))
    torch.testing.assert_close(apply_task_vector(base, tau, 0.5), torch.tensor([1 + 1 / 3, 2 - 1 / 6]))
    torch.testing.assert_close(average([a, b], [3.0, 1.0], True), torch.tensor([0.625, -0.5]))


def test_slerp_turns_at_constant_speed() -> None:
    assert slerp_coefficients(0.5, 1.0, 1.0, 0.0) == pytest.approx((math.sqrt(0.5),) * 2)
    assert slerp_coefficients(0.3, 1.0, 1.0, 1.0) == pytest.approx((0.7, 0.3))
    assert slerp_coefficients(0.0, 2.0, 3.0, 1.0) == pytest.approx((1.0, 0.0))


def test_keep_probabilities_rise_with_rank_within_a_row() -> None:
    probabilities = keep_probabilities(row_ranks(torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])), 0.5, 0.2)
    torch.testing.assert_close(probabilities, torch.tensor([[0.7, 0.3, 0.5], [0.3, 0.7, 0.5]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 7, 4096, (1 << 16) + 3])
def test_ranks_are_those_of_a_stable_sort(dtype: torch.dtype, columns: int) -> None:
    """Of many equal magnitudes too, and of zeros and subnormal ones."""
    magnitude = (torch.randn(3, columns, generator=torch.Generator().manual_seed(0)) * 1e-2).to(dtype).abs()
    magnitude[:, ::5], magnitude[:, 1::7] = 0.0, torch.finfo(dtype).smallest_normal / 4
    order = magnitude.argsort(dim=-1, stable=True)
    assert torch.equal(row_ranks(magnitude), order.argsort(dim=-1).float())
