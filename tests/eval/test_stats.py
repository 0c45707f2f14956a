"""Intervals and paired comparisons against independent oracles: scipy, and simulated coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval import stats


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 300), (150, 300), (37, 41)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    expected = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert stats.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 3), (0, 5), (12, 3), (3, 12), (400, 300)])
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    expected = scipy_stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert stats.mcnemar_exact(only_a, only_b) == pytest.approx(expected)


def test_ratio_interval_is_near_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    size = rng.integers(100, 900, 60).astype(float)
    bits = size * rng.normal(2.5, 0.3, 60)
    expected = scipy_stats.bootstrap(
        (bits, size),
        lambda b, s, axis: b.sum(axis) / s.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=9_000,
        rng=0,
    ).confidence_interval
    assert stats.ratio_interval(list(bits), list(size)) == pytest.approx(tuple(expected), abs=0.01)


def test_mean_interval_has_the_stratified_spread() -> None:
    rng = np.random.default_rng(2)
    groups = [(rng.random(n) < p).astype(float) for n, p in [(400, 0.2), (200, 0.5), (50, 0.9)]]
    low, high = stats.mean_interval([list(group) for group in groups], resamples=20_000)
    error = np.sqrt(sum(group.var() / len(group) for group in groups)) / 3  # variance of a mean of independent means
    centre = np.mean([group.mean() for group in groups])
    assert (low, high) == pytest.approx((centre - 1.96 * error, centre + 1.96 * error), abs=0.1 * error)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    truth = (0.3 + 0.6) / 2
    covered = 0
    for trial in range(400):
        groups = [list((rng.random(150) < p).astype(float)) for p in (0.3, 0.6)]
        low, high = stats.mean_interval(groups, seed=trial, resamples=400)
        covered += low <= truth <= high
    assert 0.91 < covered / 400 < 0.98


def test_a_bootstrap_is_the_same_for_the_same_seed_only() -> None:
    values = [[float(k % 3 == 0) for k in range(50)]]
    assert stats.mean_interval(values) == stats.mean_interval(values)
    assert not np.array_equal(stats.resampled_sums([[1.0], [0.0]], 0), stats.resampled_sums([[1.0], [0.0]], 1))


def test_a_large_bootstrap_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "INDICES_AT_ONCE", 700)
    sums = stats.resampled_sums(np.ones((100, 2)), 0, 25)
    assert sums.shape == (25, 2)
    assert (sums == 100).all()


def scores(values: list[float], task: str = "t") -> list[dict[str, Any]]:
    return [
        {"task": task, "id": str(k), "metric": "acc", "score": value, "prediction": 0, "target": 0}
        for k, value in enumerate(values)
    ]


def test_paired_difference_counts_the_discordant_items_whatever_their_order() -> None:
    a, b = scores([1, 1, 1, 0, 1, 0, 1, 1]), scores([0, 0, 1, 0, 1, 1, 0, 0])
    found = stats.paired_difference(a, b[::-1])
    assert (found.value, found.n, found.only_a, found.only_b) == (0.375, 8, 4, 1)
    assert found.p == pytest.approx(scipy_stats.binomtest(4, 5).pvalue)
    assert found.low < found.value < found.high
    assert stats.paired_difference(a, a) == stats.Difference(0.0, 0.0, 0.0, 8, 1.0, 0, 0)


def test_pairing_is_narrower_than_independent_samples_would_be() -> None:
    rng = np.random.default_rng(4)
    a = (rng.random(300) < 0.5).astype(float)
    b = np.where(rng.random(300) < 0.05, 1 - a, a)
    found = stats.paired_difference(scores(list(a)), scores(list(b)))
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(a - b) / np.sqrt(300), rel=0.15)


def test_paired_difference_weighs_tasks_alike() -> None:
    a = scores([1.0] * 90, "large") + scores([0.0] * 10, "small")
    b = scores([0.0] * 90, "large") + scores([1.0] * 10, "small")
    assert stats.paired_difference(a, b).value == 0


def test_paired_difference_of_bits_is_of_the_totals() -> None:
    a = [
        {"task": "t", "id": str(k), "metric": "bits_per_byte", "bits": bits, "bytes": size}
        for k, (bits, size) in enumerate([(200, 100), (30, 10)])
    ]
    b = [{**row, "bits": row["bits"] - 11} for row in a]
    found = stats.paired_difference(a, b)
    assert found.value == pytest.approx(22 / 110)
    assert (found.p, found.n) == (None, 2)


def test_unpaired_samples_are_refused() -> None:
    a = scores([1, 0, 1])
    bits = [{"task": "t", "id": "9", "metric": "bits_per_byte", "bits": 1.0, "bytes": 1}]
    for left, right in [(a, a[:2]), ([], []), (a + a[:1], a), (a + bits, a + bits)]:
        with pytest.raises(ValueError, match=r"same items|one number"):
            stats.paired_difference(left, right)
