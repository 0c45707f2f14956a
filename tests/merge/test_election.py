"""Sign election and slack in all its forms, against definitions written out parameter by parameter."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.arithmetic import Consensus, Slack, elected_sign, merge_taus

# Small whole numbers: exact in every dtype, with many zeros and many exact ties between models.
VALUES = st.lists(st.lists(st.integers(-4, 4), min_size=6, max_size=6), min_size=2, max_size=4)
XI = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, math.inf])
UNIT = st.sampled_from([0.5, 1.0, 2.0])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def tensors(rows: list[list[int]], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=dtype) for row in rows]


def protected_wins(shielded: Fraction, others: Fraction, slack: Slack) -> bool:
    """Whether P survives its conflict with O, as the documentation words it."""
    if math.isinf(slack.xi):
        return True
    if slack.form == "ratio":
        return abs(others) <= (1 + Fraction(slack.xi)) * abs(shielded)
    return abs(others) - abs(shielded) <= Fraction(slack.xi) * Fraction(slack.unit)


def sign_by_hand(values: list[int], slack: Slack, scope: list[bool]) -> int:
    """+1 or −1. A protected value outside the scope votes as everyone does."""
    inside = [mine and here for mine, here in zip(slack.protected, scope, strict=True)]
    shielded = Fraction(sum(v for v, here in zip(values, inside, strict=True) if here))
    others = Fraction(sum(v for v, here in zip(values, inside, strict=True) if not here))
    conflict = shielded * others < 0
    if slack.on and conflict and protected_wins(shielded, others, slack):
        return 1 if shielded > 0 else -1
    return 1 if shielded + others >= 0 else -1


def merged_by_hand(values: list[int], weights: list[float], slack: Slack, scope: list[bool], normalize: bool) -> float:
    sign, plain = sign_by_hand(values, slack, scope), sign_by_hand(values, replace(slack, xi=0.0), scope)
    everyone = slack.both and sign != plain
    alive = [(v, w) for v, w in zip(values, weights, strict=True) if v * sign > 0 or (everyone and v)]
    divisor = sum(w for _, w in alive) if normalize and alive else 1
    return sum(v * w for v, w in alive) / (divisor or 1)


@given(VALUES, XI, UNIT, st.booleans(), st.booleans(), DTYPES, st.data())
@settings(max_examples=100, deadline=None)
def test_every_form_of_slack_is_its_definition(
    rows: list[list[int]], xi: float, unit: float, both: bool, normalize: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    def each_model(choices: st.SearchStrategy[float] | st.SearchStrategy[bool]) -> list[float]:
        return data.draw(st.lists(choices, min_size=len(rows), max_size=len(rows)))

    weights, protected = each_model(st.sampled_from([0.5, 1.0, 2.0])), each_model(st.booleans())
    slack = Slack(xi, tuple(map(bool, protected)), data.draw(st.sampled_from(["ratio", "difference"])), unit, both)
    scope = [data.draw(st.lists(st.booleans(), min_size=6, max_size=6)) for _ in rows]
    whole = data.draw(st.booleans())
    if whole:
        scope = [[True] * 6 for _ in rows]
    how = Consensus(tuple(weights), normalize=normalize, slack=slack)
    merged, survivors = merge_taus(tensors(rows, dtype), how, None if whole else [torch.tensor(row) for row in scope])
    expected = [
        merged_by_hand(list(values), weights, slack, list(here), normalize)
        for values, here in zip(zip(*rows, strict=True), zip(*scope, strict=True), strict=True)
    ]
    torch.testing.assert_close(merged.double(), torch.tensor(expected, dtype=dtype).double())
    assert survivors is not None and len(survivors) == len(rows)


@given(VALUES, st.booleans(), st.booleans(), st.sampled_from(["ratio", "difference"]), DTYPES)
@settings(max_examples=30, deadline=None)
def test_no_slack_is_ties_bit_for_bit(
    rows: list[list[int]], normalize: bool, both: bool, form: str, dtype: torch.dtype
) -> None:
    weights, slack = (0.7,) * len(rows), Slack(0.0, (True,) + (False,) * (len(rows) - 1), form, 2.0, both)
    taus = [tau * 0.37 for tau in tensors(rows, dtype)]
    plain, _ = merge_taus(taus, Consensus(weights, normalize=normalize))
    found, _ = merge_taus(taus, Consensus(weights, normalize=normalize, slack=slack), [tau > 0 for tau in taus])
    assert torch.equal(plain, found)


@pytest.mark.parametrize("form", ["ratio", "difference"])
def test_endless_slack_lets_the_protected_win_every_conflict(form: str) -> None:
    taus = [torch.randn(500), 100 * torch.randn(500)]
    sign = elected_sign(taus, Slack(math.inf, (True, False), form))
    assert torch.equal(sign, taus[0].sign())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_equal_magnitudes_go_to_plus_and_with_slack_to_the_protected(dtype: torch.dtype) -> None:
    a, b = torch.tensor([1.0, -1.0, 2.0], dtype=dtype), torch.tensor([-1.0, 1.0, -1.0], dtype=dtype)
    assert elected_sign([a, b]).tolist() == [1, 1, 1]
    assert elected_sign([a, b], Slack(1.0, (False, True))).tolist() == [-1, 1, -1]  # 2·|−1| ≥ |2|
    assert elected_sign([a, b], Slack(1.0, (False, True), "difference")).tolist() == [-1, 1, -1]  # |2| − |−1| ≤ 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("xi", [0.004, 0.02, 0.5])
def test_small_slack_decides_exactly_in_16_bits(dtype: torch.dtype, xi: float) -> None:
    """Summed in bfloat16, ξ = 0.004 is rounded away or turned into 0.0078: twice as many conflicts change hands."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1 << 18, generator=draw).to(dtype) for _ in range(2))
    b[:4096] = -a[:4096] * (1 + 2.0**-7)  # the neighbour in bfloat16
    sign = elected_sign([a, b], Slack(xi, (True, False)))
    exact = a.double() * (1 + xi) + b.double()
    decided = exact.abs() > 2.0**-22 * b.double().abs()  # ξ itself is rounded to float32
    assert torch.equal(sign.double()[decided], exact.sign()[decided]) and int((~decided).sum()) < 100
