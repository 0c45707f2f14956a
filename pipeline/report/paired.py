"""Paired comparisons between methods: the same seeds and the same items under both.

The one place where models are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval.metrics import scorer_of
from eval.task_checks import LOWER
from eval.task_set import BITS, BY_TEMPLATE
from pipeline.baselines import BASELINES
from pipeline.report.formatting import ANSWER_BITS, CHAT_ACCURACY
from pipeline.report.inference import Estimate, holm, two_way_clustered, verdict
from pipeline.report.records import Evaluation, Samples, mean, read_samples, read_scores, unique

Kind = Literal["accuracy", "chat", "answer_bits", "bits", "error", "corpus"]
KINDS: dict[Kind, str] = {
    "accuracy": "mean accuracy",
    "chat": CHAT_ACCURACY,
    "answer_bits": ANSWER_BITS,
    "bits": "bits per byte",
    "error": "mean error",
    "corpus": "BLEU and chrF, mean over tasks",
}
SOME: tuple[Kind, ...] = ("chat", "corpus")  # that not every checkpoint has
OF_ITEMS: tuple[Kind, ...] = ("accuracy", "chat", "error")  # means of a number for each item
LOWER_IS_BETTER: tuple[Kind, ...] = ("answer_bits", "bits", "error")
# Differences that would not matter, stated before looking: about a tenth of what continual pre-training gives.
MARGINS: dict[Kind, float] = {
    "accuracy": 0.02,
    "chat": 0.02,
    "answer_bits": 0.05,
    "bits": 0.05,
    "error": 0.02,
    "corpus": 1.0,
}
# Two models that answered n items alike may differ in 3 of n others, at 95%: 1.96 standard errors of 1.53 / n.
RULE_OF_THREE = 1.53
AGAINST = ("ct_then_sft", "ct", "sft")
Cell = tuple[str, int]  # method, CT tokens
Item = tuple[str, str, str]  # task, id, document
Term = tuple[Kind, str | None, Cell, float]  # kind, family of tasks (None: all), whose value, its weight


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Method minus baseline on the same items: mean accuracy, or bits per byte or errors (lower is better).

    p_adjusted: by Holm, for all comparisons of the report.
    """

    ct_tokens: int
    method: str
    baseline: str
    kind: Kind
    difference: Estimate
    p_adjusted: float
    least_seeds: int = 2  # that a verdict takes

    @property
    def verdict(self) -> str:
        """Return `better`, `worse` or `equivalent` if the run can decide it, else `inconclusive`."""
        gain = self.difference.negated if self.kind in LOWER_IS_BETTER else self.difference
        margin = MARGINS[self.kind]
        sides = [verdict(side, margin, self.p_adjusted, self.least_seeds) for side in (gain, gain.negated)]
        if "equivalent" in sides:
            return "equivalent"
        return "better" if sides[0] == "supported" else "worse" if sides[1] == "supported" else "inconclusive"


@dataclass(frozen=True)
class Measured:
    """What one checkpoint scored in one kind, and how much each document moves it: (documents,), summing to 0.

    n: items or documents that it is measured on. documents: the names of those that move it.
    """

    value: float
    influence: NDArray[np.float64]
    n: int
    documents: tuple[str, ...]


class Evidence:
    """The samples of a run in one language, looked up by method and budget.

    Every checkpoint answered the same items, so differences are taken item by item; seeds are paired, and both seeds
    and documents count as drawn (pipeline/report/inference.py).
    """

    def __init__(self, evaluations: Iterable[Evaluation], language: str) -> None:
        self.language = language
        self.folders = {
            (evaluation.method, evaluation.ct_tokens, evaluation.seed): evaluation.folder
            for evaluation in unique(evaluations)
        }
        self.items: dict[Kind, list[Item]] = {}
        self._measured: dict[tuple[str, int, int], dict[tuple[Kind, str | None], Measured]] = {}

    @cached_property
    def budgets(self) -> list[int]:
        """CT budgets, ascending."""
        return sorted({budget for _, budget, _ in self.folders if budget})

    @cached_property
    def families(self) -> list[str]:
        """Return the families of tasks that accuracies are measured on."""
        checkpoint = next(iter(self.folders), None)
        kinds = self._of(*checkpoint) if checkpoint else {}
        return sorted(family for kind, family in kinds if kind == "accuracy" and family is not None)

    @cached_property
    def merges(self) -> list[str]:
        """Return the methods that are merges and no arm that trains, in their order."""
        return list(dict.fromkeys(method for method, _, _ in self.folders if method not in BASELINES))

    def has(self, method: str, budget: int) -> bool:
        """Return whether there is a checkpoint of this method at this budget."""
        return bool(self.seeds(method, budget))

    def cell(self, method: str, budget: int) -> Cell | None:
        """Return the cell of a method at a budget: there, or at 0 if it does not depend on the budget."""
        return next(((method, tokens) for tokens in (budget, 0) if self.has(method, tokens)), None)

    def seeds(self, method: str, budget: int) -> set[int]:
        """Return the seeds of a method at a budget."""
        return {seed for other, tokens, seed in self.folders if (other, tokens) == (method, budget)}

    def value(self, kind: Kind, method: str, budget: int) -> float:
        """Return a score of a method at a budget, mean over seeds."""
        return mean([self._of(method, budget, seed)[kind, None].value for seed in sorted(self.seeds(method, budget))])

    def contrast(self, kind: Kind, weights: Sequence[tuple[Cell, float]], family: str | None = None) -> Estimate | None:
        """Return a weighted sum of the values of some (method, budget), over the seeds that all of them have.

        Of one family of tasks, or the mean of all. None if they share no seed, or one was not measured.
        """
        return self.combination([(kind, family, cell, weight) for cell, weight in weights])

    def combination(self, terms: Sequence[Term], seeds: Collection[int] | None = None) -> Estimate | None:
        """Compute `contrast` for values of several kinds: a document moves all that is measured on it at once.

        seeds: none but these. n is that of the first term.
        """
        shared = set.intersection(*(self.seeds(*cell) for _, _, cell, _ in terms)) if terms else set()
        chosen = sorted(shared if seeds is None else shared.intersection(seeds))
        kinds = {(cell, seed): self._of(*cell, seed) for _, _, cell, _ in terms for seed in chosen}
        if not chosen or any((kind, of) not in kinds[cell, seed] for kind, of, cell, _ in terms for seed in chosen):
            return None
        rows = [[(weight, kinds[cell, seed][kind, of]) for kind, of, cell, weight in terms] for seed in chosen]
        values = [sum(weight * each.value for weight, each in row) for row in rows]
        names = dict.fromkeys(name for names in {each.documents for _, each in rows[0]} for name in names)
        index_of = {name: index for index, name in enumerate(sorted(names))}
        moves = np.asarray([np.sum([weight * _placed(each, index_of) for weight, each in row], axis=0) for row in rows])
        counted = [each.n for (_, each), (kind, *_) in zip(rows[0], terms, strict=True) if kind in OF_ITEMS]
        return two_way_clustered(values, moves, rows[0][0][1].n, RULE_OF_THREE / counted[0] if counted else 0.0)

    def difference(
        self, kind: Kind, first: Sequence[Cell], second: Sequence[Cell], family: str | None = None
    ) -> Estimate | None:
        """Return the mean of some (method, budget) minus that of others."""
        means = [*((cell, 1 / len(first)) for cell in first), *((cell, -1 / len(second)) for cell in second)]
        return self.contrast(kind, means, family)

    def _of(self, method: str, budget: int, seed: int) -> dict[tuple[Kind, str | None], Measured]:
        """Return the scores of one checkpoint. Raises ValueError if its items differ from the others'."""
        key = (method, budget, seed)
        if key not in self._measured:
            split = samples_by_kind(self.folders[key], self.language)
            for kind, samples in split.items():
                if kind in SOME and not samples:  # a checkpoint without a template, or a run without such tasks
                    continue
                items = [(sample["task"], sample["id"], sample["document"]) for sample in samples]
                if self.items.setdefault(kind, items) != items:
                    path = self.folders[key] / "samples.jsonl"
                    raise ValueError(f"{path}: not the same items as those of the other checkpoints")
            named = {sample["document"] for sample in split["accuracy"] if sample["document"] != sample["id"]}
            self._measured[key] = {
                (kind, family): measured(kind, of_family, named if kind == "bits" else ())
                for kind, samples in split.items()
                for family in (None, *sorted({sample["family"] for sample in samples}))
                if (of_family := [sample for sample in samples if family in (None, sample["family"])])
            }
        return self._measured[key]


def samples_by_kind(folder: Path, language: str) -> dict[Kind, Samples]:
    """Return the samples of one language that a kind is computed from, with their families, sorted by task and id.

    Errors are those of tasks whose primary metric is better the lower it is, such as a word error rate. chat: of tasks
    that were asked by a chat template, beside plain. corpus: of BLEU and chrF, the counts of each document.
    """
    records = read_scores(folder)
    families = {record["task"]: record["family"] for record in records if record["language"] == language}
    lower = {(record["task"], record["metric"]) for record in records if not record.get(LOWER, True)}
    samples = sorted(
        (
            {**sample, "family": families[sample["task"]]}
            for sample in read_samples(folder)
            if sample["task"] in families
        ),
        key=lambda sample: (sample["task"], sample["id"]),
    )
    plain = [sample for sample in samples if not sample["task"].endswith(BY_TEMPLATE)]
    scored = [sample for sample in plain if "score" in sample]
    right = [s for s in samples if "score" in s and (s["task"], s["metric"]) not in lower]
    return {
        "accuracy": [sample for sample in right if not sample["task"].endswith(BY_TEMPLATE)],
        "chat": [sample for sample in right if sample["task"].endswith(BY_TEMPLATE)],
        "answer_bits": [sample for sample in plain if "answer_bits" in sample],
        "bits": [sample for sample in plain if sample["metric"] == BITS],
        "error": [s for s in scored if (s["task"], s["metric"]) in lower],
        "corpus": [s for s in plain if "counts" in s and (s["task"], s["metric"]) not in lower],
    }


def _placed(each: Measured, index_of: Mapping[str, int]) -> NDArray[np.float64]:
    """Return the influences of documents at the places of their names, 0 elsewhere."""
    if len(each.documents) == len(index_of):
        return each.influence
    moved = np.zeros(len(index_of))
    moved[[index_of[name] for name in each.documents]] = each.influence
    return moved


def _document(sample: Mapping[str, Any], named: Collection[str]) -> str:
    """Return the document of an item. One that names none has its id there (eval/records.py) and stands alone.

    The id may be a mere number: items of one number in two tasks have nothing in common. named: documents that others
    name; a text of such an id is this document.
    """
    alone = sample["document"] == sample["id"] and sample["id"] not in named
    return f"{sample['task']}/{sample['id']}" if alone else str(sample["document"])


FIELDS: dict[str, tuple[str, str | None]] = {  # numerator and denominator; None: each item counts one
    "accuracy": ("score", None),
    "chat": ("score", None),
    "answer_bits": ("answer_bits", "answer_bytes"),
    "bits": ("bits", "bytes"),
    "error": ("score", None),
}


def measured(kind: Kind, samples: Samples, named: Collection[str] = ()) -> Measured:
    """Return the unweighted mean over tasks of total numerator / total denominator, and each document's influence on
    it.

    named: as in `_document`. Of BLEU and chrF, which are functions of summed counts, it is what leaving the document
    out changes (the jackknife; B. Efron and C. Stein, The Annals of Statistics 9 (1981) 586-596).
    """
    if kind == "corpus":
        return _measured_corpus(samples, named)
    numerator, denominator = FIELDS[kind]
    names = sorted({_document(sample, named) for sample in samples})
    documents = {name: index for index, name in enumerate(names)}
    sums: dict[str, NDArray[np.float64]] = {}
    for sample in samples:
        by_document = sums.setdefault(sample["task"], np.zeros((len(documents), 2)))
        by_document[documents[_document(sample, named)]] += (
            sample[numerator],
            sample[denominator] if denominator else 1.0,
        )
    values, influences = [], []
    for by_document in sums.values():
        total, size = by_document.sum(axis=0)
        values.append(total / size)
        influences.append((by_document[:, 0] - by_document[:, 1] * total / size) / size)
    return Measured(float(np.mean(values)), np.asarray(np.mean(influences, axis=0)), len(samples), tuple(names))


def _measured_corpus(samples: Samples, named: Collection[str]) -> Measured:
    """Return the unweighted mean over tasks of the score of summed counts, and each document's influence on it."""
    names = sorted({_document(sample, named) for sample in samples})
    index_of = {name: index for index, name in enumerate(names)}
    values, influences = [], []
    for task in dict.fromkeys(sample["task"] for sample in samples):
        rows = [sample for sample in samples if sample["task"] == task]
        counts, score, n = np.asarray([row["counts"] for row in rows]), scorer_of(rows[0]["counted"]), len(rows)
        total = counts.sum(axis=0)
        values.append(score(total))
        moved = np.zeros(len(names))
        if n > 1:
            left_out = np.asarray([score(total - row) for row in counts])
            for row, change in zip(rows, (left_out.mean() - left_out) * (n - 1) / n, strict=True):
                moved[index_of[_document(row, named)]] += change
        influences.append(moved)
    return Measured(float(np.mean(values)), np.asarray(np.mean(influences, axis=0)), len(samples), tuple(names))


def compare(
    evidence: Evidence, pairs: Sequence[tuple[str, str]] | None = None, least_seeds: int = 2
) -> list[Comparison]:
    """Compare methods with baselines at every budget that both have; a baseline without CT at all of them.

    pairs: (method, baseline); left out, every merge against CT-then-SFT, CT and SFT.
    """
    budgets = evidence.budgets if pairs is None else sorted({tokens for _, tokens, _ in evidence.folders})
    if pairs is None:
        pairs = [(method, baseline) for baseline in AGAINST for method in evidence.merges]
    comparisons: list[Comparison] = []
    for baseline in dict.fromkeys(baseline for _, baseline in pairs):
        for budget in budgets:
            reference = (baseline, budget if evidence.has(baseline, budget) else 0)
            for method in (method for method, other in pairs if other == baseline):
                if not (evidence.has(method, budget) and evidence.has(*reference)):
                    continue
                for kind in KINDS:
                    if (difference := evidence.difference(kind, [(method, budget)], [reference])) is not None:
                        comparisons.append(
                            Comparison(
                                ct_tokens=budget,
                                method=method,
                                baseline=baseline,
                                kind=kind,
                                difference=difference,
                                p_adjusted=difference.p,
                                least_seeds=least_seeds,
                            )
                        )
    adjusted = holm([each.p_adjusted for each in comparisons])
    return [replace(each, p_adjusted=p) for each, p in zip(comparisons, adjusted, strict=True)]


def across(methods: Sequence[str], given: bool) -> list[tuple[str, str]] | None:
    """Choose the comparisons of several reports: each method with that of the same name in the first report.

    given: checkpoints that somebody scored, all of them with the first. None: of one report, where it is `compare`'s to
    say.
    """
    if given:
        return [(method, methods[0]) for method in methods[1:]]
    by_name: dict[str, list[str]] = {}
    for method in methods:
        by_name.setdefault(method.rpartition("/")[2], []).append(method)
    if not any("/" in method for method in methods):
        return None
    return [(other, first) for first, *others in by_name.values() for other in others]
