"""Paired comparisons between methods: the same items under both, with the bootstrap of eval.stats.

The one place where two models are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from common.files import read_jsonl
from eval.stats import Floats, percentiles, resampled_sums
from pipeline.report.records import WITHOUT_CT, Evaluation, Samples, mean
from pipeline.report.results import BITS, unique

Kind = Literal["accuracy", "bits"]
KINDS: tuple[Kind, ...] = ("accuracy", "bits")
ROUNDING = 1e-9  # differences of equals may miss 0 by this much
AGAINST = ("ct_then_sft", "ct", "sft")


@dataclass(frozen=True)
class Difference:
    """A difference with its 95 % interval, over n items."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Method minus baseline on the same items: mean accuracy, or bits per byte (lower is better)."""

    ct_tokens: int
    method: str
    baseline: str
    kind: Kind
    difference: Difference

    @property
    def verdict(self) -> str:
        """Better or worse where the 95 % interval excludes 0, else `not shown`."""
        side = sign(self.difference)
        if side == 0:
            return "not shown"
        return "better" if (side > 0) == (self.kind == "accuracy") else "worse"


class Evidence:
    """The samples of a run in one language, looked up by method and budget.

    Every checkpoint is resampled with the same draws of items, so that a resampled difference is the difference of
    resampled values: each checkpoint is resampled once, and every comparison is exactly the paired bootstrap (of the
    items within each task, tasks weighed alike; of documents for bits per byte). Several seeds are averaged within
    each resample.
    """

    def __init__(self, evaluations: Iterable[Evaluation], language: str) -> None:
        self.language = language
        self.folders = {
            (evaluation.method, evaluation.ct_tokens, evaluation.seed): evaluation.folder
            for evaluation in unique(evaluations)
        }
        self.items: dict[Kind, list[tuple[str, str]]] = {}
        self._resampled: dict[tuple[str, int, int], dict[Kind, Floats]] = {}

    @cached_property
    def budgets(self) -> list[int]:
        """CT budgets, ascending."""
        return sorted({budget for _, budget, _ in self.folders if budget})

    @cached_property
    def merges(self) -> list[str]:
        """The methods that are merges, in their order."""
        unmerged = (*WITHOUT_CT, "ct", "ct_then_sft")
        return list(dict.fromkeys(method for method, _, _ in self.folders if method not in unmerged))

    def has(self, method: str, budget: int) -> bool:
        """Whether there is a checkpoint of this method at this budget."""
        return bool(self.seeds(method, budget))

    def seeds(self, method: str, budget: int) -> set[int]:
        """The seeds of a method at a budget."""
        return {seed for other, tokens, seed in self.folders if (other, tokens) == (method, budget)}

    def value(self, kind: Kind, method: str, budget: int) -> float:
        """Mean accuracy or bits per byte, mean over seeds."""
        return mean([float(self._drawn(method, budget, seed)[kind][0]) for seed in sorted(self.seeds(method, budget))])

    def contrast(self, kind: Kind, weights: Sequence[tuple[tuple[str, int], float]]) -> Difference | None:
        """A weighted sum of the values of some (method, budget), over the seeds that all of them have.

        None where nothing was measured.
        """
        seeds = set.intersection(*(self.seeds(*key) for key, _ in weights))
        drawn = [(weight / len(seeds), self._drawn(*key, seed)) for key, weight in weights for seed in sorted(seeds)]
        if not drawn or any(kind not in kinds for _, kinds in drawn):
            return None
        total = np.sum([weight * kinds[kind] for weight, kinds in drawn], axis=0)
        return Difference(float(total[0]), *percentiles(total[1:]), len(self.items[kind]))

    def difference(
        self, kind: Kind, first: Sequence[tuple[str, int]], second: Sequence[tuple[str, int]]
    ) -> Difference | None:
        """The mean of some (method, budget) minus that of others."""
        return self.contrast(
            kind, [*((key, 1 / len(first)) for key in first), *((key, -1 / len(second)) for key in second)]
        )

    def _drawn(self, method: str, budget: int, seed: int) -> dict[Kind, Floats]:
        """Of one checkpoint, shape (1 + resamples,): what was measured, then resampled values. Raises ValueError."""
        key = (method, budget, seed)
        if key not in self._resampled:
            folder = self.folders[key]
            tasks = {
                record["task"] for record in read_jsonl(folder / "scores.jsonl") if record["language"] == self.language
            }
            samples_of_language = sorted(
                (sample for sample in read_jsonl(folder / "samples.jsonl") if sample["task"] in tasks),
                key=lambda sample: (sample["task"], sample["id"]),
            )
            split: dict[Kind, Samples] = {
                "accuracy": [sample for sample in samples_of_language if sample["metric"] != BITS],
                "bits": [sample for sample in samples_of_language if sample["metric"] == BITS],
            }
            for kind, samples in split.items():
                items = [(sample["task"], sample["id"]) for sample in samples]
                if self.items.setdefault(kind, items) != items:
                    raise ValueError(
                        f"{folder / 'samples.jsonl'}: not the same items as those of the other checkpoints"
                    )
            self._resampled[key] = {kind: RESAMPLE[kind](samples) for kind, samples in split.items() if samples}
        return self._resampled[key]


def resampled_accuracy(samples: Samples) -> Floats:
    """The unweighted mean over tasks of mean scores, resampled within each task."""
    by_task: dict[str, list[float]] = {}
    for sample in samples:
        by_task.setdefault(sample["task"], []).append(sample["score"])
    groups = [np.asarray(scores)[:, None] for scores in by_task.values()]
    means = [
        np.append(scores.mean(), resampled_sums(scores, (0, number))[:, 0] / len(scores))
        for number, scores in enumerate(groups)
    ]
    return np.asarray(np.mean(means, axis=0))


def resampled_bits(samples: Samples) -> Floats:
    """Total bits / total bytes, resampling documents."""
    pairs = np.asarray([(sample["bits"], sample["bytes"]) for sample in samples], dtype=np.float64)
    sums = np.vstack([pairs.sum(axis=0), resampled_sums(pairs, 0)])
    return np.asarray(sums[:, 0] / sums[:, 1])


RESAMPLE = {"accuracy": resampled_accuracy, "bits": resampled_bits}


def sign(difference: Difference) -> int:
    """1 or -1 where the 95 % interval lies on one side of 0, else 0."""
    return (difference.low > ROUNDING) - (difference.high < -ROUNDING)


def compare(evidence: Evidence) -> list[Comparison]:
    """Every merge at every budget against CT-then-SFT and CT of the same budget, and against SFT."""
    comparisons = []
    for baseline in AGAINST:
        for budget in evidence.budgets:
            reference = (baseline, 0 if baseline in WITHOUT_CT else budget)
            for method in evidence.merges:
                if not (evidence.has(method, budget) and evidence.has(*reference)):
                    continue
                for kind in KINDS:
                    if (difference := evidence.difference(kind, [(method, budget)], [reference])) is not None:
                        comparisons.append(Comparison(budget, method, baseline, kind, difference))
    return comparisons
