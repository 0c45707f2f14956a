"""Intervals of scores. Pure: numbers in, numbers out; every bootstrap is seeded.

Sources: E. B. Wilson, JASA 22 (1927) 209-212, for the score interval; B. Efron, The Annals of Statistics 7 (1979) 1-26,
for the bootstrap, with percentile intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
RESAMPLES = 1_000
INDICES_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap: 64 MB of indices and gathered values


def wilson(successes: int, n: int) -> Interval:
    """The 95 % score interval of a proportion, from the count of successes among n > 0 trials."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def resampled_sums(columns: ArrayLike, seed: Any, resamples: int = RESAMPLES) -> Floats:
    """Column sums over rows drawn with replacement: (n, k) -> (resamples, k), float64."""
    values = np.asarray(columns, dtype=np.float64)
    rng, n = np.random.default_rng(seed), len(values)
    step = max(1, INDICES_AT_ONCE // n)
    sums = [
        values[rng.integers(n, size=(min(step, resamples - start), n))].sum(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(sums)


def percentiles(statistics: Floats) -> Interval:
    """The central 95 % of bootstrap statistics, shape (resamples,)."""
    low, high = np.percentile(statistics, [2.5, 97.5])
    return float(low), float(high)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """95 % interval of sum(numerators) / sum(denominators), resampling the n pairs.

    For bits per byte: total bits / total bytes over n documents.
    """
    sums = resampled_sums(np.column_stack([numerators, denominators]), 0, RESAMPLES)
    return percentiles(sums[:, 0] / sums[:, 1])


def mean_interval(groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """95 % interval of the unweighted mean of the groups' means, resampling the items of each (stratified)."""
    means = [_resampled_mean(group, (seed, number), resamples) for number, group in enumerate(groups)]
    return percentiles(np.mean(means, axis=0))


def mean_ratio_interval(groups: Sequence[Sequence[tuple[float, float]]]) -> Interval:
    """95 % interval of the unweighted mean over groups of sum(numerators) / sum(denominators), stratified by group."""
    sums = [resampled_sums(group, (0, number), RESAMPLES) for number, group in enumerate(groups)]
    return percentiles(np.mean([group[:, 0] / group[:, 1] for group in sums], axis=0))


def _resampled_mean(group: Sequence[float], seed: Any, resamples: int) -> Floats:
    return resampled_sums(np.asarray(group)[:, None], seed, resamples)[:, 0] / len(group)
