"""Metrics of a whole task that are no mean over documents -> 95 % intervals, by a bootstrap over documents.

BLEU, chrF and TER are functions of sums of counts over sentences. sacrebleu gives these counts, so that a draw of
documents costs one addition. All other aggregates of lm-eval are computed again on each draw, of which there are fewer.
Draws are seeded: all checkpoints get the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.stats import RESAMPLES, Interval, percentiles, resampled_sums

REDRAWN = 200  # draws of an aggregate that is computed again on each of them
SEED = 0
Aggregate = Callable[[Sequence[Any]], Any]
Counts = NDArray[np.float64]  # (documents, counts of one sentence)


def interval(aggregate: Aggregate, items: Sequence[Any], value: float) -> Interval:
    """Return the 95% interval of aggregate(items), which is `value`, over documents. items: one per document."""
    counts = sentence_counts(aggregate, items)
    if counts is not None:
        score = scorer(aggregate)
        if isclose(score(counts.sum(axis=0)), value, rel_tol=1e-9, abs_tol=1e-9):
            return percentiles(np.asarray([score(sums) for sums in resampled_sums(counts, SEED, RESAMPLES)]))
    rng = np.random.default_rng(SEED)
    draws = (rng.integers(len(items), size=len(items)) for _ in range(REDRAWN))
    return percentiles(np.asarray([float(aggregate([items[place] for place in draw])) for draw in draws]))


def sentence_counts(aggregate: Aggregate, items: Sequence[Any]) -> Counts | None:
    """Return the counts of each sentence; None for aggregates not of sacrebleu. items: (reference, generated)."""
    metric = _metrics().get(aggregate)
    if metric is None:
        return None
    pairs = [(_texts(generated)[0], _texts(references)) for references, generated in items]
    rows = [metric._extract_corpus_statistics([text], [[each] for each in references])[0] for text, references in pairs]
    return np.asarray(rows, dtype=np.float64)


def sentence_scores(aggregate: Aggregate, counts: Counts) -> list[float]:
    """Return the score of each sentence alone, in the metric's unit."""
    return [scorer(aggregate)(row) for row in counts]


def by_name(aggregate: Aggregate) -> str | None:
    """Return the name of an aggregate of sacrebleu in lm-eval's table; None of another."""
    return next((name for name, known in _aggregates().items() if known is aggregate), None)


def scorer_of(name: str) -> Callable[[Counts], float]:
    """Return the function from summed counts to a score, by the name that `by_name` gave."""
    return scorer(_aggregates()[name])


def _texts(given: Any) -> list[str]:
    return [str(each) for each in given] if isinstance(given, list | tuple) else [str(given)]


def scorer(aggregate: Aggregate) -> Callable[[Counts], float]:
    """Return the function from summed counts to a score."""
    metric = _metrics()[aggregate]
    return lambda sums: float(metric._compute_score_from_stats(sums.tolist()).score)


@cache
def _aggregates() -> dict[str, Aggregate]:
    from lm_eval.api import metrics

    return {"bleu": metrics.bleu, "chrf": metrics.chrf, "chrf++": metrics.chrfpp, "ter": metrics.ter}


@cache
def _metrics() -> dict[Aggregate, Any]:
    """Return the metric of sacrebleu behind each of lm-eval's aggregates, with the settings of lm-eval."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    own = {"bleu": BLEU(), "chrf": CHRF(), "chrf++": CHRF(word_order=2), "ter": TER()}
    return {aggregate: own[name] for name, aggregate in _aggregates().items()}
