"""Score records of all cells -> long rows, results.csv, and readable tables.

Several seeds: every row in the CSV, means over seeds in tables.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from common.units import format_tokens
from eval.prompting import CHAT
from eval.task_checks import LOWER
from eval.task_set import BITS, BY_TEMPLATE, CORRECT_BITS
from pipeline.baselines import BASELINES
from pipeline.report.records import ENGLISH, WITHOUT_CT, Evaluation, Row, labels, mean, read_scores
from pipeline.report.wording import ANSWER_BITS

COLUMNS = tuple(field.name for field in fields(Row))[:12]
# The names of the measures that sum a language up; a terminal shows the first two.
OVERALL = ("mean accuracy", "bits per byte", ANSWER_BITS)


@dataclass(frozen=True)
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
    def lower_is_better(self) -> bool:
        return self.metric in (BITS, CORRECT_BITS) or not self.higher_is_better


@dataclass(frozen=True)
class Point:
    """A method's score at one budget: means over seeds of the value and of the ends of its 95% interval."""

    value: float
    low: float
    high: float


def unique(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Return each checkpoint once, unmerged methods first.

    Base and SFT belong to every cell of a sweep, but no budget changes them: their ct_tokens are 0.
    """
    checkpoints: dict[tuple[str, int, int], Evaluation] = {}
    for given in evaluations:
        budget = 0 if given.method in WITHOUT_CT else given.ct_tokens
        key = (given.method, budget, given.seed)
        checkpoints.setdefault(key, Evaluation(given.method, budget, given.seed, given.folder))
    order = methods_in_order([method for method, _, _ in checkpoints])
    return sorted(
        checkpoints.values(),
        key=lambda evaluation: (order.index(evaluation.method), evaluation.ct_tokens, evaluation.seed),
    )


def methods_in_order(methods: Iterable[str]) -> list[str]:
    """Return each method once: base, SFT, CT, CT-then-SFT and the other arms that train, then the merges as they
    come.
    """
    seen = list(dict.fromkeys(methods))
    return [method for method in BASELINES if method in seen] + [method for method in seen if method not in BASELINES]


def gather(evaluations: Iterable[Evaluation]) -> list[Row]:
    """Return every score record of every checkpoint, as rows."""
    names = [field.name for field in fields(Row)]
    rows = []
    for evaluation in unique(evaluations):
        cell = {"method": evaluation.method, "ct_tokens": evaluation.ct_tokens, "seed": evaluation.seed}
        for record in read_scores(evaluation.folder):
            values = record | cell
            rows.append(Row(**{name: values[name] for name in names if name not in (LOWER, CHAT) or name in values}))
    return rows


def to_csv(rows: Sequence[Row]) -> str:
    """results.csv; what is not known is empty. Where a chat template was wanted, the last column is `chat`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (*COLUMNS, CHAT) if any(row.chat is not None for row in rows) else COLUMNS
    writer.writerow(columns)
    writer.writerows([getattr(row, name) for name in columns] for row in rows)
    return text.getvalue()


def languages(rows: Sequence[Row], target: str) -> list[str]:
    """Return the target language, English, then any other."""
    seen = {row.language: None for row in rows}
    return [code for code in (target, ENGLISH) if code in seen] + [
        code for code in seen if code not in (target, ENGLISH)
    ]


def measures(rows: Sequence[Row], language: str) -> list[Measure]:
    """List the measures of a language: its summaries, every task by its primary metric, and answer bits."""
    of_language = [row for row in rows if row.language == language and (row.primary or row.metric == CORRECT_BITS)]
    last = {(row.task, row.metric): row for row in sorted(of_language, key=lambda row: row.metric == CORRECT_BITS)}
    families = [row.family for row in last.values() if row.primary and not row.task.endswith(BY_TEMPLATE)]

    def name(row: Row) -> str:
        if row.task.endswith(BY_TEMPLATE):
            return f"{name(replace(row, task=row.task.removesuffix(BY_TEMPLATE)))} by chat template"
        if row.family == "mean":
            return ANSWER_BITS if row.metric == CORRECT_BITS else "mean accuracy"
        if row.metric == BITS and families.count(row.family) == 1:
            return "bits per byte"
        task = row.family if families.count(row.family) == 1 else row.task
        if not row.higher_is_better:
            return f"{task}: {row.metric}"
        return f"{task}: {ANSWER_BITS}" if row.metric == CORRECT_BITS else task

    shown = [
        Measure(language, row.task, row.metric, name(row), row.chance, row.trivial, row.higher_is_better)
        for row in last.values()
    ]
    return sorted(shown, key=lambda measure: OVERALL.index(measure.name) if measure.name in OVERALL else len(OVERALL))


def points(rows: Sequence[Row], measure: Measure) -> dict[tuple[str, int], Point]:
    """Return a measure's score for each (method, ct_tokens)."""
    grouped: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if (row.language, row.task, row.metric) == (measure.language, measure.task, measure.metric):
            grouped.setdefault((row.method, row.ct_tokens), []).append(row)
    return {
        key: Point(*(mean([getattr(row, column) for row in seeds]) for column in ("value", "low", "high")))
        for key, seeds in grouped.items()
    }


def best(scores: dict[tuple[str, int], Point], measure: Measure) -> set[tuple[str, int]]:
    """Return the (method, ct_tokens) that are best at their budget, as printed; where only one method is there, none
    is.
    """
    chosen = set()
    for budget in {budget for _, budget in scores}:
        column = {key: round(point.value, 3) for key, point in scores.items() if key[1] == budget}
        if len(column) > 1:
            top = min(column.values()) if measure.lower_is_better else max(column.values())
            chosen |= {key for key, value in column.items() if value == top}
    return chosen


def budgets_of(rows: Sequence[Row]) -> list[int]:
    """Return the budgets in ascending order; 0 (no CT) comes first where it is there."""
    return sorted({row.ct_tokens for row in rows})


def budget_name(ct_tokens: int) -> str:
    """Return a budget as the head of a column."""
    return format_tokens(ct_tokens) if ct_tokens else "no CT"


def baselines(measure: Measure) -> str:
    """Format `chance 0.250, trivial 0.310`, as far as they are known."""
    known = (("chance", measure.chance), ("trivial", measure.trivial))
    return ", ".join(f"{name} {value:.3f}" for name, value in known if value is not None)


def to_markdown(rows: Sequence[Row], target: str, names: dict[str, str]) -> str:
    """results.md: a table per language, methods as rows, CT budgets as columns; the best of each column in bold."""
    budgets, order = budgets_of(rows), methods_in_order(row.method for row in rows)
    titles = labels(order)
    legend = "CT budgets in tokens; means over seeds; the best value of each column in bold. "
    parts = ["# Results\n", f"{legend}Accuracies are shares; bits per byte: lower is better."]
    for language in languages(rows, target):
        parts.append(f"\n## {names.get(language, language)}\n")
        parts.append(f"| measure | method | {' | '.join(budget_name(budget) for budget in budgets)} |")
        parts.append("|---|---|" + "---:|" * len(budgets))
        for measure in measures(rows, language):
            scores = points(rows, measure)
            bold, levels = best(scores, measure), baselines(measure)
            for method in order:
                cells = [_cell(scores.get((method, budget)), (method, budget) in bold) for budget in budgets]
                if any(cells):
                    name = f"{measure.name} ({levels})" if levels else measure.name
                    parts.append(f"| {name} | {titles[method]} | {' | '.join(cells)} |")
                    levels = ""
    return "\n".join(parts) + "\n"


def _cell(point: Point | None, bold: bool) -> str:
    if point is None:
        return ""
    return f"**{point.value:.3f}**" if bold else f"{point.value:.3f}"


def terminal_table(rows: Sequence[Row], language: str) -> str:
    """Format methods x budgets for a terminal: mean accuracy in the language, then bits per byte (after a slash).

    If neither was measured: the first two tasks.
    """
    budgets, order = budgets_of(rows), methods_in_order(row.method for row in rows)
    titles = labels(order)
    every = measures(rows, language)
    shown = [measure for measure in every if measure.name in OVERALL[:2]] or every[:2]  # or error rates alone
    columns = [points(rows, measure) for measure in shown]
    head = ["", *(budget_name(budget) for budget in budgets)]
    lines = [head]
    for method in order:
        cells = []
        for budget in budgets:
            values = [column.get((method, budget)) for column in columns]
            cells.append(
                " / ".join("-" if point is None else f"{point.value:.3f}" for point in values) if any(values) else ""
            )
        lines.append([titles[method], *cells])
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    title = f"{language}: {' / '.join(measure.name for measure in shown)}, by CT tokens"
    padded = [
        [line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], rest, strict=True))]
        for line in lines
    ]
    return "\n".join([title, *("  ".join(line).rstrip() for line in padded)])
