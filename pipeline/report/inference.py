"""Confidence intervals, p-values and minimum detectable effects, from values by seed and document. Pure functions.

Seeds and documents (chapters) are crossed: every seed's model answers the items of the same documents. Both are drawn,
so both count: the variance of a mean over seeds is that over seeds, plus that over documents, minus what both count
twice (Cameron, Gelbach & Miller, J. Business & Economic Statistics 29 (2011) 238-249), with Student's t at
Satterthwaite's degrees of freedom (Biometrics Bulletin 2 (1946) 110-114). Resampling both (the crossed bootstrap of
Owen, Annals of Applied Statistics 1 (2007) 386-411) gives the same spread where seeds are many; with the three to eight
of an experiment its percentiles are too narrow where seeds differ and too wide where they do not. The tests simulate
both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Verdict = Literal[
    "supported", "equivalent", "ruled out", "contradicted", "inconclusive", "exploratory", "no data"
]  # exploratory: an estimate without a verdict
# Names in files that were written before 0.2. They are read until then.
OLD_VERDICTS: dict[str, Verdict] = {
    "shown": "supported",
    "level": "equivalent",
    "not shown": "ruled out",
    "undecided": "inconclusive",
}
LEVEL = 0.05  # of significance, two-sided: intervals are 95%
POWER = 0.80  # of the minimum detectable effect
ROUNDING = 1e-9  # differences of equals may miss 0 by this much


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A difference with its 95% interval.

    p: two-sided, of no difference. mde, the minimum detectable effect: the true difference that p, not adjusted, would
    tell from 0 four times in five; where p is adjusted for several claims (Holm), it takes a larger one.
    n: items. seeds, documents: how many were crossed. error: the standard error, with its degrees of freedom.
    """

    value: float
    low: float
    high: float
    p: float
    mde: float
    n: int
    seeds: int
    documents: int
    error: float = inf
    dof: float = inf

    @property
    def negated(self) -> Estimate:
        """Return the same difference the other way round."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)

    def at(self, level: float) -> Estimate:
        """Return the same difference with the interval and the MDE of another level of significance."""
        if self.error == inf:
            return self
        half = quantile(1 - level / 2, self.dof)
        mde = (half + quantile(POWER, self.dof)) * self.error
        return replace(self, low=self.value - half * self.error, high=self.value + half * self.error, mde=mde)

    def p_above(self, threshold: float) -> float:
        """Return the two-sided p-value of a true difference of at most `threshold`: twice the one-sided."""
        if self.error == 0:
            return float(self.value <= threshold + ROUNDING)
        return 1.0 if self.error == inf else min(1.0, 2 * below((threshold - self.value) / self.error, self.dof))


@dataclass(frozen=True)
class Parts:
    """One effect in each task or at each CT budget. by: `task` or `CT budget`."""

    by: str = "task"
    effects: tuple[tuple[str, Estimate], ...] = ()

    @property
    def differ(self) -> bool:
        """Whether some are above 0 and some below, so that their mean hides both."""
        values = [effect.value for _, effect in self.effects]
        return any(value > ROUNDING for value in values) and any(value < -ROUNDING for value in values)


def two_way_clustered(values: ArrayLike, influences: ArrayLike, n: int, least_error: float = 0.0) -> Estimate:
    """Return the mean over seeds of a statistic, for other seeds and other documents.

    values: (seeds,). influences: (seeds, documents), how much each document moves a seed's value, summing to 0 over
    documents; no documents (seeds, 0) for what is counted and not sampled. With one seed the interval speaks of other
    documents only; where neither seeds nor documents are two, it is infinite. The standard error is least_error at
    least: what never happened among a few items may yet happen.
    """
    by_seed, by_document = np.asarray(values, dtype=np.float64), np.asarray(influences, dtype=np.float64)
    seeds, documents = by_document.shape
    value = float(by_seed.mean())
    var_seeds = var_documents = var_both = 0.0  # variances of the mean
    if seeds > 1:
        var_seeds = float(((by_seed - value) ** 2).sum()) / (seeds * (seeds - 1))
    if documents > 1:
        finite = documents / (documents - 1)
        means = by_document.mean(axis=0)
        var_documents = finite * float((means**2).sum())
        if seeds > 1:
            var_both = finite * float(((by_document - means) ** 2).sum()) / (seeds * (seeds - 1))
    if seeds < 2 and documents < 2:
        return Estimate(value=value, low=-inf, high=inf, p=1.0, mde=inf, n=n, seeds=seeds, documents=documents)
    # each part includes what both count, so that the sum is not smaller than either
    variance = max(var_seeds + var_documents - var_both, var_seeds, var_documents)
    dof = max(1.0, _dof(variance, var_seeds, var_documents, var_both, seeds, documents))
    return _student(value, max(sqrt(variance), least_error), dof, n, seeds, documents)


def _dof(variance: float, var_seeds: float, var_documents: float, var_both: float, seeds: int, documents: int) -> float:
    parts = ((var_seeds, seeds - 1), (var_documents, documents - 1), (var_both, (seeds - 1) * (documents - 1)))
    spread = sum(part**2 / dof for part, dof in parts if dof > 0)
    return variance**2 / spread if spread > 0 else inf


def quantile(p: float, dof: float) -> float:
    """Return a quantile of Student's t; of the normal distribution for infinite degrees of freedom."""
    from scipy import special  # scipy.stats would give the same numbers, and take a second to import

    return float(special.ndtri(p) if dof == inf else special.stdtrit(dof, p))


def below(x: float, dof: float) -> float:
    """Return the probability that Student's t is below x."""
    from scipy import special

    return float(special.ndtr(x) if dof == inf else special.stdtr(dof, x))


def _student(value: float, error: float, dof: float, n: int, seeds: int, documents: int) -> Estimate:
    p = 2 * below(-abs(value) / error, dof) if error > 0 else float(abs(value) < ROUNDING)
    return Estimate(
        value=value, low=value, high=value, p=p, mde=0.0, n=n, seeds=seeds, documents=documents, error=error, dof=dof
    ).at(LEVEL)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p-values for being several (S. Holm, Scandinavian J. Statistics 6 (1979) 65-70), in their order."""
    adjusted, running = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        running = max(running, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = running
    return adjusted


def levels(ps: Sequence[float]) -> list[float]:
    """Return the level of each claim's interval by Holm: that of its step; those after the step that stops share its
    level.

    A claim whose p is below its level has a p, adjusted by Holm, below LEVEL.
    """
    found, going = [LEVEL] * len(ps), True
    level = LEVEL / max(1, len(ps))
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        if going:
            level = LEVEL / (len(ps) - rank)
            going = ps[index] < level
        found[index] = level
    return found


def verdict(estimate: Estimate, margin: float, p_adjusted: float, least_seeds: int = 2) -> Verdict:
    """Decide the claim that a difference is above 0; differences within `margin` do not matter (an equivalence
    margin).

    equivalent: the interval lies inside the margin. supported: above 0, by the p-value adjusted for all claims.
    contradicted: the interval lies below 0. ruled out: the interval excludes a gain as large as the margin.
    inconclusive: none of these, and always with fewer seeds than least_seeds (1 if two checkpoints are compared and not
    two methods). The interval is that of a single claim: of many verdicts that rest on it, some are wrong by chance.
    """
    if estimate.seeds < least_seeds:
        return "inconclusive"
    if -margin < estimate.low and estimate.high < margin:
        return "equivalent"
    if estimate.value > ROUNDING and p_adjusted < LEVEL:
        return "supported"
    if estimate.high < 0:
        return "contradicted"
    return "ruled out" if estimate.high < margin else "inconclusive"
