"""Intervals and paired comparisons. Pure: numbers in, numbers out; every bootstrap is seeded.

Sources: E. B. Wilson, JASA 22 (1927) 209-212, for the score interval; B. Efron, The Annals of Statistics 7 (1979) 1-26, for the bootstrap, with
percentile intervals; Q. McNemar, Psychometrika 12 (1947) 153-157, in its exact form, the binomial test on the discordant pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
RESAMPLES = 1_000
INDICES_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap: 64 MB of indices and gathered values


def wilson(successes: float, n: int) -> Interval:
    """The 95 % score interval of a proportion, from the count of successes among n > 0 trials."""
    share, spread = successes / n, Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return (0.0 if successes <= 0 else centre - half), (
        1.0 if successes >= n else centre + half
    )  # exact at both ends, where rounding is not


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


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """95 % interval of sum(numerators) / sum(denominators), resampling the n pairs: total bits / total bytes over documents."""
    sums = resampled_sums(np.column_stack([numerators, denominators]), seed, resamples)
    return percentiles(sums[:, 0] / sums[:, 1])


def mean_interval(groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """95 % interval of the unweighted mean of the groups' means, resampling the items of each group by itself (stratified)."""
    return percentiles(
        np.mean([_resampled_mean(group, (seed, place), resamples) for place, group in enumerate(groups)], axis=0)
    )


def _resampled_mean(group: Sequence[float], seed: Any, resamples: int) -> Floats:
    return resampled_sums(np.asarray(group)[:, None], seed, resamples)[:, 0] / len(group)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p that A and B are right equally often, from the counts of items that only A and only B has right."""
    n = only_a + only_b
    tail: int = sum(comb(n, k) for k in range(min(only_a, only_b) + 1))
    return float(min(1.0, 2 * tail / 2**n))


@dataclass(frozen=True)
class Difference:
    """A minus B on the same items: the value with its 95 % interval; p (McNemar) and the discordant counts for right-or-wrong scores only."""

    value: float
    low: float
    high: float
    n: int
    p: float | None = None
    only_a: int | None = None
    only_b: int | None = None


def paired_difference(
    samples_a: Sequence[Mapping[str, Any]],
    samples_b: Sequence[Mapping[str, Any]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compares two models on the samples of one task or of several (records of samples.jsonl), matched by task, id and metric.

    Scores: the unweighted mean over tasks of the mean difference, resampled within each task; McNemar pools the tasks' items. Bits per byte: the
    difference of total bits / total bytes, resampling documents. Raises ValueError where the two do not hold the same items, or mix both kinds.
    """
    a, b = ({(row["task"], row["id"], row["metric"]): row for row in samples} for samples in (samples_a, samples_b))
    if not a or a.keys() != b.keys() or len(a) != len(samples_a) or len(b) != len(samples_b):
        raise ValueError("paired samples must hold the same items, each once, and at least one")
    kinds = {metric == "bits_per_byte" for _, _, metric in a}
    if len(kinds) > 1:
        raise ValueError("bits per byte and scores cannot be compared in one number")
    keys = sorted(a)
    if kinds == {True}:
        return _bits_difference([(a[key]["bits"], b[key]["bits"], a[key]["bytes"]) for key in keys], seed, resamples)
    by_task: dict[str, list[float]] = {}
    for key in keys:
        by_task.setdefault(key[0], []).append(a[key]["score"] - b[key]["score"])
    groups = list(by_task.values())
    low, high = mean_interval(groups, seed, resamples)
    value = float(np.mean([np.mean(group) for group in groups]))
    if any(row["score"] not in (0, 1) for rows in (a, b) for row in rows.values()):
        return Difference(value, low, high, len(keys))
    differences = [difference for group in groups for difference in group]
    only_a, only_b = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Difference(value, low, high, len(keys), mcnemar_exact(only_a, only_b), only_a, only_b)


def _bits_difference(rows: Sequence[tuple[float, float, float]], seed: int, resamples: int) -> Difference:
    bits_a, bits_b, size = np.asarray(rows, dtype=np.float64).sum(axis=0)
    sums = resampled_sums(rows, seed, resamples)
    low, high = percentiles((sums[:, 0] - sums[:, 1]) / sums[:, 2])
    return Difference(float((bits_a - bits_b) / size), low, high, len(rows))
