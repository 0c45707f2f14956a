"""The scores of a run as a data frame, and what tables and charts take from it.

A frame has one row per score record and checkpoint. Its columns are objects: a value stays as the file has it, None
included, so that it is written as it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pandas import DataFrame

from eval.prompting import CHAT
from eval.task_checks import LOWER
from eval.task_set import BITS, BY_TEMPLATE, CORRECT_BITS
from pipeline.report.formatting import ANSWER_BITS
from pipeline.report.records import ENGLISH, Evaluation, mean, methods_in_order, read_scores, unique
from train.data.blocks import text_seen

# of results.csv; low and high are a 95% interval
COLUMNS = [
    "language",
    "task",
    "metric",
    "method",
    "ct_tokens",
    "seed",
    "value",
    "low",
    "high",
    "n",
    "chance",
    "trivial",
]
# predictions: how often each label of a fixed set was the answer. chat: whether it was asked by a chat template; None
# if no template was wanted, or there was no prompt.
MORE = ["family", "primary", "predictions", LOWER, CHAT]
OPTIONAL = {LOWER: True, CHAT: None}  # bits have their own names
DIGITS = 4  # of scores and shares in charts: far below what intervals leave open
# The names of the measures that summarise a language; a terminal shows the first two.
OVERALL = ("mean accuracy", "bits per byte", ANSWER_BITS)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One panel of curves and one block of a table: a task under its primary metric or its answer bits."""

    language: str
    task: str
    metric: str
    name: str
    chance: float | None
    trivial: float | None
    higher_is_better: bool = True

    @property
    def id(self) -> str:
        """Its name in charts."""
        return f"{self.language}/{self.task}/{self.metric}"

    @property
    def lower_is_better(self) -> bool:
        return self.metric in (BITS, CORRECT_BITS) or not self.higher_is_better

    @property
    def baselines(self) -> dict[str, float]:
        """What chance and a trivial baseline score, as far as it is known."""
        known = {"chance": self.chance, "trivial": self.trivial}
        return {name: value for name, value in known.items() if value is not None}


def frame(columns: Sequence[str], rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> DataFrame:
    """Return rows as a data frame that keeps Python's values."""
    return DataFrame(list(rows), columns=list(columns), dtype=object)


def csv_text(table: DataFrame) -> str:
    """Return a table as CSV; None is empty."""
    return str(table.to_csv(index=False, lineterminator="\n"))


def gather(evaluations: Iterable[Evaluation]) -> DataFrame:
    """Return every score record of every checkpoint."""
    return frame(
        [*COLUMNS, *MORE],
        (
            {**OPTIONAL, **record, "method": one.method, "ct_tokens": one.ct_tokens, "seed": one.seed}
            for one in unique(evaluations)
            for record in read_scores(one.folder)
        ),
    )


def to_csv(scores: DataFrame) -> str:
    """Return results.csv; what is not known is empty. If a chat template was wanted, the last column is `chat`."""
    return csv_text(scores[[*COLUMNS, CHAT] if scores[CHAT].notna().any() else COLUMNS])


def languages(scores: DataFrame, target: str) -> list[str]:
    """Return the target language, English, then any other."""
    seen = list(scores.language.unique())
    return [code for code in (target, ENGLISH) if code in seen] + [c for c in seen if c not in (target, ENGLISH)]


def budgets_of(scores: DataFrame) -> list[int]:
    """Return the budgets in ascending order; 0 (no CT) comes first if it is there."""
    return sorted(scores.ct_tokens.unique())


def methods_of(scores: DataFrame) -> list[str]:
    """Return the methods in their order."""
    return methods_in_order(scores.method)


def measures(scores: DataFrame, language: str) -> list[Measure]:
    """List the measures of a language: its summaries, every task by its primary metric, and answer bits."""
    of_answers = scores.metric == CORRECT_BITS
    rows = scores[(scores.language == language) & (scores.primary.astype(bool) | of_answers)]
    rows = rows.assign(of_answers=of_answers).sort_values("of_answers", kind="stable")
    last = {(row.task, row.metric): row for row in rows.itertuples()}
    families = [row.family for row in last.values() if row.primary and not row.task.endswith(BY_TEMPLATE)]

    def name(row: Any, task: str) -> str:
        if task.endswith(BY_TEMPLATE):
            return f"{name(row, task.removesuffix(BY_TEMPLATE))} by chat template"
        if row.family == "mean":
            return ANSWER_BITS if row.of_answers else "mean accuracy"
        if row.metric == BITS and families.count(row.family) == 1:
            return "bits per byte"
        title = row.family if families.count(row.family) == 1 else task
        if not row.higher_is_better:
            return f"{title}: {row.metric}"
        return f"{title}: {ANSWER_BITS}" if row.of_answers else title

    shown = [
        Measure(
            language=language,
            task=row.task,
            metric=row.metric,
            name=name(row, row.task),
            chance=row.chance,
            trivial=row.trivial,
            higher_is_better=row.higher_is_better,
        )
        for row in last.values()
    ]
    return sorted(shown, key=lambda measure: OVERALL.index(measure.name) if measure.name in OVERALL else len(OVERALL))


def all_measures(scores: DataFrame, target: str) -> list[Measure]:
    """Return those of the target language first, what summarises a language before single tasks."""
    return [measure for language in languages(scores, target) for measure in measures(scores, language)]


def points(scores: DataFrame, measure: Measure) -> DataFrame:
    """Return a measure's value, low and high by (method, ct_tokens): means over seeds, in the order of the rows.

    seeds: the value of each. best: whether it is the best of its budget as printed, among several methods.
    """
    of_measure = scores[
        (scores.language == measure.language) & (scores.task == measure.task) & (scores.metric == measure.metric)
    ]
    by_seed = of_measure.groupby(["method", "ct_tokens"], sort=False)[["value", "low", "high"]].agg(list)
    points = by_seed.map(mean).astype(object)  # pandas adds up otherwise than `sum`, which shows in the last digit
    printed = points.value.map(lambda value: round(value, 3)).astype(float)
    of_budget = printed.groupby(level="ct_tokens")
    top = of_budget.transform("min" if measure.lower_is_better else "max")
    return points.assign(seeds=by_seed.value, best=(printed == top) & (of_budget.transform("size") > 1))


def grid(
    points: DataFrame, write: Callable[[Any], str], methods: Sequence[str], budgets: Sequence[int]
) -> dict[str, list[str]]:
    """Lay points out as text, by method one cell per budget (empty if there is none). write: a row as text."""
    text = {row.Index: write(row) for row in points.itertuples()}
    return {method: [text.get((method, budget), "") for budget in budgets] for method in methods}


# What a base must show before methods are compared on it, stated beforehand (docs/results/notebook.md). Gates apply to
# the scored split: `experiment=gates` scores dev, so that no test item has a say in the choice of a base.
LEARNS = 0.08  # accuracy of `next` that CT at the largest budget must add to the base
ROOM = 0.10  # accuracy that SFT in the language, after the largest CT, must add to English SFT, in each family
SKILL = 0.60  # accuracy of English SFT on English items, mean of the families kept


@dataclass(frozen=True)
class Gate:
    """One gate's answer: it passes if value >= threshold.

    kind: learns, room (one per family: a family that fails leaves the suite) or skill.
    """

    kind: str
    family: str
    value: float
    threshold: float

    @property
    def passed(self) -> bool:
        return self.value >= self.threshold

    def as_json(self) -> dict[str, Any]:
        """Return a row of gates.json."""
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        result = "passed" if self.passed else "FAILED"
        return f"  gate {self.kind} ({self.family}): {self.value:.3f}, wanted {self.threshold:.2f}: {result}"


def gates(scores: DataFrame, target: str) -> list[Gate]:
    """Return the answers, means over seeds; empty if target_sft was not scored."""
    accuracies = scores[
        scores.primary.astype(bool) & scores.metric.map(lambda name: name.startswith("acc")) & (scores.family != "mean")
    ]
    by = ["language", "family", "method", "ct_tokens"]
    value: dict[Any, float] = accuracies.groupby(by, sort=False)["value"].agg(list).map(mean).to_dict()
    budget = max((tokens for _, _, method, tokens in value if method == "target_sft"), default=None)
    if budget is None:
        return []
    families = sorted({family for language, family, method, _ in value if (language, method) == (target, "target_sft")})
    room = [
        Gate("room", family, value[target, family, "target_sft", budget] - value[target, family, "sft", 0], ROOM)
        for family in families
        if (target, family, "sft", 0) in value
    ]
    kept = [gate.family for gate in room if gate.passed]
    english = [value[ENGLISH, family, "sft", 0] for family in kept if (ENGLISH, family, "sft", 0) in value]
    after, before = value.get((target, "next", "ct", budget)), value.get((target, "next", "base", 0))
    learns = [] if after is None or before is None else [Gate("learns", "next", after - before, LEARNS)]
    skill = [Gate("skill", " ".join(kept), mean(english), SKILL)] if english else []
    return [*learns, *room, *skill]


@dataclass(frozen=True)
class DataExposure:
    """One language's text in a CT budget, in tokens. epochs: how often each unique token was read, on average."""

    budget: int
    language: str
    tokens: int
    unique_tokens: int
    epochs: float


def data_exposure(counts: Iterable[Mapping[str, Any]], budgets: Iterable[int]) -> list[DataExposure]:
    """Return one row per budget and language; of blocks of several seeds, those with the fewest unique tokens.

    counts: the counts.json of CT's blocks. Blocks smaller than a budget do not count for it.
    """
    rows: list[DataExposure] = []
    for budget in budgets:
        seen = [text_seen(each, budget) for each in counts if each["tokens"] >= budget]
        for language in dict.fromkeys(language for each in seen for language in each):
            fewest = min((each[language] for each in seen if language in each), key=lambda text: text.unique_tokens)
            rows.append(DataExposure(budget, language, fewest.tokens, fewest.unique_tokens, fewest.epochs))
    return rows
