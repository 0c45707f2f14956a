"""Paired comparisons between methods: the same items under both, bootstrapped by eval.stats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from eval.stats import Difference, paired_difference
from pipeline.report.records import WITHOUT_CT, Evaluation, Samples, mean, read_jsonl
from pipeline.report.results import BITS, unique

Kind = Literal["accuracy", "bits"]
KINDS: tuple[Kind, ...] = ("accuracy", "bits")
AGAINST = ("ct_then_sft", "ct", "sft")


@dataclass(frozen=True)
class Comparison:
    """Method minus baseline on the same items of the target language: mean accuracy, or bits per byte (lower is better)."""

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
    """The samples of a run in one language, averaged over seeds and looked up by method and budget."""

    def __init__(self, evaluations: Iterable[Evaluation], language: str) -> None:
        self.language = language
        self.folders = {(one.method, one.ct_tokens, one.seed): one for one in unique(evaluations)}
        self._read: dict[tuple[str, int, int], dict[Kind, Samples]] = {}

    @cached_property
    def budgets(self) -> list[int]:
        """CT budgets, ascending."""
        return sorted({budget for _, budget, _ in self.folders if budget})

    @cached_property
    def merges(self) -> list[str]:
        """The methods that are merges, in their order."""
        unmerged = (*WITHOUT_CT, "ct", "ct_then_sft")
        return list(dict.fromkeys(method for method, _, _ in self.folders if method not in unmerged))

    def difference(self, kind: Kind, first: Sequence[tuple[str, int]], second: Sequence[tuple[str, int]]) -> Difference | None:
        """The mean of some (method, budget) minus that of others, over the seeds that all of them have; None where there is none."""
        seeds = set.intersection(*({seed for method, budget, seed in self.folders if (method, budget) == key} for key in (*first, *second)))
        if not seeds:
            return None
        sides = [average([self._samples(*key, seed)[kind] for key in side for seed in sorted(seeds)]) for side in (first, second)]
        return paired_difference(sides[0], sides[1]) if sides[0] and sides[1] else None

    def change(self, first: tuple[tuple[str, int], tuple[str, int]], second: tuple[tuple[str, int], tuple[str, int]]) -> Difference | None:
        """A difference of differences in mean accuracy: (a - b) - (c - d) for pairs of (method, budget), item by item."""
        (a, b), (c, d) = first, second
        halved = self.difference("accuracy", [a, d], [b, c])  # each side is the mean of two
        if halved is None:
            return None
        return Difference(2 * halved.value, 2 * halved.low, 2 * halved.high, halved.n)

    def accuracy(self, method: str, budget: int) -> float:
        """Mean accuracy, over all seeds."""
        seeds = sorted(seed for one, tokens, seed in self.folders if (one, tokens) == (method, budget))
        by_task: dict[str, list[float]] = {}
        for sample in average([self._samples(method, budget, seed)["accuracy"] for seed in seeds]):
            by_task.setdefault(sample["task"], []).append(sample["score"])
        return mean([mean(scores) for scores in by_task.values()])

    def has(self, method: str, budget: int) -> bool:
        return any((one, tokens) == (method, budget) for one, tokens, _ in self.folders)

    def _samples(self, method: str, budget: int, seed: int) -> dict[Kind, Samples]:
        key = (method, budget, seed)
        if key not in self._read:
            folder = self.folders[key].folder
            tasks = {record["task"] for record in read_jsonl(folder / "scores.jsonl") if record["language"] == self.language}
            own = [sample for sample in read_jsonl(folder / "samples.jsonl") if sample["task"] in tasks]
            bits = [sample for sample in own if sample["metric"] == BITS]
            self._read[key] = {"accuracy": [sample for sample in own if sample["metric"] != BITS], "bits": bits}
        return self._read[key]


def average(groups: Sequence[Samples]) -> Samples:
    """Item by item, the mean score (or bits) of several checkpoints on the same items. Raises ValueError where the items differ."""
    if len(groups) == 1:
        return groups[0]
    indexed = [{(sample["task"], sample["id"], sample["metric"]): sample for sample in group} for group in groups]
    if any(one.keys() != indexed[0].keys() for one in indexed[1:]):
        raise ValueError("paired samples must hold the same items")
    averaged = []
    for key, sample in indexed[0].items():
        field = "bits" if "bits" in sample else "score"
        averaged.append({**sample, field: mean([one[key][field] for one in indexed])})
    return averaged


def sign(difference: Difference) -> int:
    """1 or -1 where the 95 % interval lies on one side of 0, else 0."""
    return (difference.low > 0) - (difference.high < 0)


def compare(evidence: Evidence) -> list[Comparison]:
    """Every merge at every budget against CT-then-SFT and CT of the same budget, and against SFT."""
    found = []
    for baseline in AGAINST:
        for budget in evidence.budgets:
            place = (baseline, 0 if baseline in WITHOUT_CT else budget)
            for method in evidence.merges:
                if not (evidence.has(method, budget) and evidence.has(*place)):
                    continue
                for kind in KINDS:
                    if (difference := evidence.difference(kind, [(method, budget)], [place])) is not None:
                        found.append(Comparison(budget, method, baseline, kind, difference))
    return found
