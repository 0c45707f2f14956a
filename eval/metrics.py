"""Intervals of scores, corpus metrics and calibration. Pure functions; every bootstrap is seeded.

Sources: E. B. Wilson, JASA 22 (1927) 209-212, for the score interval; B. Efron, The Annals of Statistics 7 (1979) 1-26,
for the bootstrap, with percentile intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Aggregate = Callable[[Sequence[Any]], Any]
Counts = NDArray[np.float64]  # (documents, counts of one sentence)
SEED, RESAMPLES = 0, 1_000
RECOMPUTED_RESAMPLES = 200  # draws of an aggregate that is computed again on each of them
INDICES_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap: 64 MB of indices and gathered values


def wilson(successes: int, n: int) -> Interval:
    """Return the 95% score interval of a proportion, from the count of successes among n > 0 trials."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def resampled_sums(columns: ArrayLike, seed: Any, resamples: int = RESAMPLES) -> Floats:
    """Return column sums over rows drawn with replacement: (n, k) -> (resamples, k), float64."""
    values = np.asarray(columns, dtype=np.float64)
    rng, n = np.random.default_rng(seed), len(values)
    step = max(1, INDICES_AT_ONCE // n)
    sums = [
        values[rng.integers(n, size=(min(step, resamples - start), n))].sum(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(sums)


def percentiles(statistics: Floats) -> Interval:
    """Return the central 95% of bootstrap statistics, shape (resamples,)."""
    low, high = np.percentile(statistics, [2.5, 97.5])
    return float(low), float(high)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Return the 95% interval of sum(numerators) / sum(denominators), resampling the n pairs.

    For bits per byte: total bits / total bytes over n documents.
    """
    sums = resampled_sums(np.column_stack([numerators, denominators]), 0, RESAMPLES)
    return percentiles(sums[:, 0] / sums[:, 1])


def mean_interval(groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return the 95% interval of the unweighted mean of the groups' means, resampling each (stratified)."""
    means = [_resampled_mean(group, (seed, number), resamples) for number, group in enumerate(groups)]
    return percentiles(np.mean(means, axis=0))


def mean_ratio_interval(groups: Sequence[Sequence[tuple[float, float]]]) -> Interval:
    """Return the 95% interval of the mean over groups of sum(numerators) / sum(denominators), stratified by group."""
    sums = [resampled_sums(group, (0, number), RESAMPLES) for number, group in enumerate(groups)]
    return percentiles(np.mean([group[:, 0] / group[:, 1] for group in sums], axis=0))


def _resampled_mean(group: Sequence[float], seed: Any, resamples: int) -> Floats:
    return resampled_sums(np.asarray(group)[:, None], seed, resamples)[:, 0] / len(group)


# --- Corpus metrics ---
#
# BLEU, chrF and TER are functions of sums of counts over sentences. sacrebleu gives these counts, so that a draw of
# documents costs one addition. All other aggregates of lm-eval are computed again on each draw, of which there are
# fewer. Draws are seeded: all checkpoints get the same ones.


def aggregate_interval(aggregate: Aggregate, items: Sequence[Any], value: float) -> Interval:
    """Return the 95% interval of aggregate(items), which is `value`, over documents. items: one per document."""
    counts = sentence_counts(aggregate, items)
    if counts is not None:
        score = scorer_of_aggregate(aggregate)
        if isclose(score(counts.sum(axis=0)), value, rel_tol=1e-9, abs_tol=1e-9):
            return percentiles(np.asarray([score(sums) for sums in resampled_sums(counts, SEED, RESAMPLES)]))
    rng = np.random.default_rng(SEED)
    draws = (rng.integers(len(items), size=len(items)) for _ in range(RECOMPUTED_RESAMPLES))
    return percentiles(np.asarray([float(aggregate([items[index] for index in draw])) for draw in draws]))


def sentence_counts(aggregate: Aggregate, items: Sequence[Any]) -> Counts | None:
    """Return the counts of each sentence; None for aggregates not of sacrebleu. items: (reference, generated)."""
    metric = _sacrebleu_metrics().get(aggregate)
    if metric is None:
        return None
    pairs = [(_texts(generated)[0], _texts(references)) for references, generated in items]
    rows = [
        metric._extract_corpus_statistics([text], [[reference] for reference in references])[0]
        for text, references in pairs
    ]
    return np.asarray(rows, dtype=np.float64)


def sentence_scores(aggregate: Aggregate, counts: Counts) -> list[float]:
    """Return the score of each sentence alone, in the metric's unit."""
    return [scorer_of_aggregate(aggregate)(row) for row in counts]


def metric_name_of(aggregate: Aggregate) -> str | None:
    """Return the name of an aggregate of sacrebleu in lm-eval's table; None of another."""
    return next((name for name, known in _aggregates().items() if known is aggregate), None)


def scorer_of(name: str) -> Callable[[Counts], float]:
    """Return the function from summed counts to a score, by the name that `metric_name_of` gave."""
    return scorer_of_aggregate(_aggregates()[name])


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list | tuple) else [str(value)]


def scorer_of_aggregate(aggregate: Aggregate) -> Callable[[Counts], float]:
    """Return the function from summed counts to a score."""
    metric = _sacrebleu_metrics()[aggregate]
    return lambda sums: float(metric._compute_score_from_stats(sums.tolist()).score)


@cache
def _aggregates() -> dict[str, Aggregate]:
    from lm_eval.api import metrics

    return {"bleu": metrics.bleu, "chrf": metrics.chrf, "chrf++": metrics.chrfpp, "ter": metrics.ter}


@cache
def _sacrebleu_metrics() -> dict[Aggregate, Any]:
    """Return the metric of sacrebleu behind each of lm-eval's aggregates, with the settings of lm-eval."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    metrics = {"bleu": BLEU(), "chrf": CHRF(), "chrf++": CHRF(word_order=2), "ter": TER()}
    return {aggregate: metrics[name] for name, aggregate in _aggregates().items()}


# --- Batch calibration: label priors removed without labels ---
#
# A model prefers some labels whatever the prompt. Each label's probability is divided by its mean over prompts whose
# answers are unknown: argmax_j p(j | x) / mean_x' p(j | x'), with p normalised over the labels (Zhou et al., Batch
# Calibration, arXiv 2309.17249).


def log_probabilities(loglikelihoods: ArrayLike) -> Floats:
    """Normalise log-likelihoods in nats, (prompts, labels), so that the labels' probabilities add up to 1."""
    from scipy.special import log_softmax

    return np.asarray(log_softmax(np.asarray(loglikelihoods, dtype=np.float64), axis=1))


def log_priors(loglikelihoods: ArrayLike) -> Floats:
    """Return the log of each label's mean probability over prompts: (prompts, labels) -> (labels,)."""
    normalised = log_probabilities(loglikelihoods)
    return np.asarray(np.logaddexp.reduce(normalised, axis=0) - np.log(len(normalised)))


def calibrated_choices(loglikelihoods: ArrayLike, unlabelled: ArrayLike) -> NDArray[np.int64]:
    """Return the label of each prompt, (prompts,), with the priors of other prompts (or the same) divided out.

    loglikelihoods: (prompts, labels). unlabelled: (other prompts, labels).
    """
    return np.asarray(np.argmax(log_probabilities(loglikelihoods) - log_priors(unlabelled), axis=1))
