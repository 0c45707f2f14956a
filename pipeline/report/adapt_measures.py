"""The measures that experiment=adapt raises and keeps: their names, and what models scored in them on test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from eval.prompting import CHAT
from eval.records import AGGREGATE
from eval.task_checks import LOWER
from eval.task_set import BITS, BY_TEMPLATE
from pipeline.config.adapting import TASKS
from pipeline.report.inference import Estimate
from pipeline.report.paired import LOWER_IS_BETTER, Evidence, Kind, Term
from pipeline.report.records import ENGLISH, Evaluation, read_scores
from pipeline.stages.adapting import is_of_lm_eval

ACCURACY, OF_ENGLISH = "acc", f"_{ENGLISH}"
UNITS: dict[Kind, str] = {
    "accuracy": "in accuracy",
    "chat": "in accuracy by chat template",
    "bits": "bits per byte saved",
    "error": "of errors saved",
    "corpus": "in BLEU or chrF",
}


@dataclass(frozen=True)
class Measure:
    """A measure by what it is the mean of.

    parts: families of tasks (None: all) with kind and weight; empty: all tasks of the kind. title: as on the page, such
    as `Chichewa accuracy`.
    """

    name: str
    title: str
    language: str
    kind: Kind
    parts: tuple[tuple[Kind, str | None, float], ...] = ()

    @property
    def unit(self) -> str:
        """The unit of a gain."""
        return UNITS[self.kind]

    @property
    def lower_is_better(self) -> bool:
        return self.kind in LOWER_IS_BETTER

    @property
    def terms(self) -> tuple[tuple[Kind, str | None, float], ...]:
        """Kind, family and weight of each part."""
        return self.parts or ((self.kind, None, 1.0),)


@dataclass(frozen=True)
class Level:
    """A score with its 95% interval, of n items or documents."""

    value: float
    low: float
    high: float
    n: int


def kind_of(row: Mapping[str, Any]) -> Kind:
    """Return the kind of a task by its score record."""
    if row["metric"] == BITS:
        return "bits"
    if row.get(AGGREGATE):
        return "corpus"
    if row["task"].endswith(BY_TEMPLATE):
        return "chat"
    return "accuracy" if row.get(LOWER, True) else "error"


def _is_of(row: dict[str, Any], measure: Measure) -> bool:
    """Whether a score record is what a measure is the mean of."""
    if row["language"] != measure.language:
        return False
    if measure.name in (ACCURACY, f"{ACCURACY}{OF_ENGLISH}"):
        return bool(row["family"] == "mean")
    if measure.name in (BITS, f"{BITS}{OF_ENGLISH}"):
        return bool(row["metric"] == BITS)
    return row["task"] == measure.name or (measure.name == TASKS and is_of_lm_eval(row))


@dataclass
class TestScores:
    """What models scored on test, each read once.

    language, title: the target's code and name.
    """

    __test__ = False  # its name is no test's

    evaluations: Sequence[Evaluation]
    language: str
    title: str
    _evidence: dict[str, Evidence] = field(default_factory=dict)

    def gain(self, measure: Measure, first: str, second: str) -> Estimate | None:
        """Return how much better `first` is than `second`, with the interval for other documents of the same kind.

        Positive is better, whatever the measure. None if one of them was not scored in it. Raises ValueError for models
        that answered different items.
        """
        sign = -1.0 if measure.lower_is_better else 1.0
        return self._estimate(measure, {first: sign, second: -sign})

    def level(self, measure: Measure, model: str) -> Level | None:
        """Return a model's own score, or None if it was not scored in the measure.

        It is the one of scores.jsonl, with its interval, if the measure is one score.
        """
        records = [row for row in self._records.get(model, ()) if row["primary"] and _is_of(row, measure)]
        if len(records) == 1:
            return Level(*(records[0][name] for name in ("value", "low", "high", "n")))
        found = self._estimate(measure, {model: 1.0})
        return None if found is None else Level(found.value, found.low, found.high, found.n)

    def _estimate(self, measure: Measure, models: Mapping[str, float]) -> Estimate | None:
        evidence = self._evidence.setdefault(measure.language, Evidence(self.evaluations, measure.language))
        if not all(evidence.has(model, 0) for model in models):
            return None
        terms: list[Term] = [
            (kind, family, (model, 0), side * weight)
            for model, side in models.items()
            for kind, family, weight in measure.terms
        ]
        found = evidence.combination(terms)
        if found is None:
            return None
        each = [evidence.combination([(kind, family, model, 1.0)]) for kind, family, model, _ in terms]
        items = sum(one.n for one in each[: len(measure.terms)] if one)  # those of the first model: all have the same
        return replace(found, n=items)

    @cached_property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """A score record under its primary metric for each task."""
        records = [row for rows in self._records.values() for row in rows]
        return {row["task"]: row for row in records if row["primary"] and row["family"] != "mean"}

    @cached_property
    def _records(self) -> dict[str, list[dict[str, Any]]]:
        return {one.method: read_scores(one.folder) for one in self.evaluations}

    @property
    def by_template(self) -> dict[str, bool]:
        """Whether each model was asked by its chat template; empty where no model was meant to be."""
        stated = {model: [row[CHAT] for row in rows if CHAT in row] for model, rows in self._records.items()}
        return {model: any(chats) for model, chats in stated.items() if chats}

    @property
    def own_tasks(self) -> list[str]:
        """The lm-eval tasks in the target language."""
        return [name for name, row in self.tasks.items() if row["language"] == self.language and is_of_lm_eval(row)]

    def measure(self, name: str) -> Measure:
        """Return the measure of a name: acc, bits_per_byte, both with _en for English, tasks, or a task.

        Raises ValueError for a task that no model was scored on.
        """
        simple: Mapping[str, tuple[str, str, Kind]] = {
            ACCURACY: (f"{self.title} accuracy", self.language, "accuracy"),
            BITS: (f"{self.title} bits per byte", self.language, "bits"),
            f"{ACCURACY}{OF_ENGLISH}": ("English accuracy", ENGLISH, "accuracy"),
            f"{BITS}{OF_ENGLISH}": ("English bits per byte", ENGLISH, "bits"),
        }
        if name in simple:
            words, of, kind = simple[name]
            return Measure(name, words, of, kind)
        wanted = self.own_tasks if name == TASKS else [name]
        chosen = [self.tasks[task] for task in wanted if task in self.tasks]
        if not chosen:
            raise ValueError(f"no model was scored on the measure {name}")
        counts = Counter((kind_of(row), str(row["family"])) for row in chosen)
        parts = tuple((kind, family, count / len(chosen)) for (kind, family), count in counts.items())
        words = f"{self.title} tasks" if name == TASKS else name
        return Measure(name, words, chosen[0]["language"], kind_of(chosen[0]), parts)

    def shown(self, *more: Measure) -> list[Measure]:
        """Return the measures of the table: the language's, its tasks, English; those of the choice are among them."""
        names = [ACCURACY, BITS, *self.own_tasks, f"{ACCURACY}{OF_ENGLISH}", f"{BITS}{OF_ENGLISH}"]
        measures = {measure.name: measure for measure in (*more, *map(self.measure, names))}
        order = [*(name for name in measures if name not in names), *names]
        return [measures[name] for name in order]
