"""Intervals against independent oracles: scipy, and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval import metrics


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 300), (150, 300), (37, 41)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    expected = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert metrics.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


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
    assert metrics.ratio_interval(list(bits), list(size)) == pytest.approx(tuple(expected), abs=0.01)


def test_mean_interval_has_the_stratified_spread() -> None:
    rng = np.random.default_rng(2)
    groups = [(rng.random(n) < p).astype(float) for n, p in [(400, 0.2), (200, 0.5), (50, 0.9)]]
    low, high = metrics.mean_interval([list(group) for group in groups], resamples=20_000)
    error = np.sqrt(sum(group.var() / len(group) for group in groups)) / 3  # variance of a mean of independent means
    centre = np.mean([group.mean() for group in groups])
    assert (low, high) == pytest.approx((centre - 1.96 * error, centre + 1.96 * error), abs=0.1 * error)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    truth = (0.3 + 0.6) / 2
    covered = 0
    for trial in range(400):
        groups = [list((rng.random(150) < p).astype(float)) for p in (0.3, 0.6)]
        low, high = metrics.mean_interval(groups, seed=trial, resamples=400)
        covered += low <= truth <= high
    assert 0.91 < covered / 400 < 0.98


def test_a_bootstrap_is_the_same_for_the_same_seed_only() -> None:
    values = [[float(k % 3 == 0) for k in range(50)]]
    assert metrics.mean_interval(values) == metrics.mean_interval(values)
    assert not np.array_equal(metrics.resampled_sums([[1.0], [0.0]], 0), metrics.resampled_sums([[1.0], [0.0]], 1))


def test_a_large_bootstrap_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "INDICES_AT_ONCE", 700)
    sums = metrics.resampled_sums(np.ones((100, 2)), 0, 25)
    assert sums.shape == (25, 2)
    assert (sums == 100).all()
