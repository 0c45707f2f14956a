"""The tables of an adaptation: models by measures, answers side by side, tries, hours by step. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.metrics import wilson
from pipeline.report import text_of_budgets
from pipeline.report.adapt_headline import name_of
from pipeline.report.adapt_measures import Measure, TestScores
from pipeline.report.adapt_records import CHAT, Answered, Candidate, Choice
from pipeline.report.text_of_budgets import Counts, TextOfBudget

STEPS = {  # of a run, by kind of stage; evaluations are split by what they score
    "corpus": "reading the text",
    "items": "making test items",
    "instructions": "making instructions",
    "leaks": "looking for leaks",
    "ct_blocks": "packing the text",
    "ct": "continual pre-training",
    "merge": "merging",
    "eval dev": "scoring the tries on dev",
    "choose": "choosing",
    "adapted": "writing the model",
    "eval test": "scoring the models on test",
    "answers": "answering the questions",
}


@dataclass(frozen=True)
class Cell:
    """A value with its 95% interval, as text; `best` if no other model's is better."""

    value: str
    interval: str
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A measure: its title, a remark such as `lower is better`, and a cell by model."""

    title: str
    remark: str
    cells: Mapping[str, Cell]


def columns(scores: TestScores, measures: Sequence[Measure], models: Sequence[str]) -> list[Column]:
    """Return a column for each measure that some model was scored in."""
    found = []
    for measure in measures:
        values = {model: value for model in models if (value := scores.level(measure, model)) is not None}
        if not values:
            continue
        ends = min if measure.lower_is_better else max
        top = ends(round(value.value, 3) for value in values.values())
        cells = {
            model: Cell(f"{value.value:.3f}", f"{value.low:.3f} to {value.high:.3f}", round(value.value, 3) == top)
            for model, value in values.items()
        }
        items = next(iter(values.values())).n
        unit = "documents" if measure.kind == "bits" else "items"
        lower = "lower is better, " if measure.lower_is_better else ""
        found.append(Column(measure.title, f"{lower}{items:,} {unit}", cells if len(cells) > 1 else _unmarked(cells)))
    return found


def markdown(columns: Sequence[Column], titles: Mapping[str, str]) -> str:
    """Return the scores as Markdown: a row a measure, a column a model. titles: of models, in their order."""
    head = ["measure", *titles.values()]
    rows = [
        [
            f"{column.title} ({column.remark})" if column.remark else column.title,
            *(_in_card(column.cells.get(model)) for model in titles),
        ]
        for column in columns
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _in_card(cell: Cell | None) -> str:
    return "–" if cell is None else f"{cell.value} [{cell.interval.replace(' to ', ', ')}]"


def _unmarked(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    return {model: Cell(cell.value, cell.interval) for model, cell in cells.items()}


def answer_columns(
    answers: Mapping[str, Sequence[Answered]], title: str, is_in_language: Callable[[str], bool] | None
) -> list[Column]:
    """Return how many answers end by themselves, and how many are in the language. title: the language's name."""
    every: list[tuple[str, Callable[[Answered], bool]]] = [("answers that end by themselves", lambda one: one.ended)]
    if is_in_language is not None:
        every.append((f"answers in {title}", lambda one: is_in_language(one.answer)))
    return [
        Column(
            name, "", {model: counted(sum(map(holds, given)), len(given)) for model, given in answers.items() if given}
        )
        for name, holds in every
        if any(answers.values())
    ]


def counted(count: int, of: int) -> Cell:
    """Return a count with the interval of its share (Wilson)."""
    low, high = wilson(count, of)
    return Cell(f"{count} of {of}", f"{100 * low:.0f}% to {100 * high:.0f}%")


def dev_rows(candidates: Sequence[Candidate], choice: Choice) -> list[dict[str, Any]]:
    """Return the tries as rows: name, scores on dev, and what became of them."""
    return [
        {
            "candidate": one.candidate,
            "method": one.method,
            "name": "chat model" if one.candidate == CHAT else name_of(one),
            "settings": json.dumps(one.settings, ensure_ascii=False),
            "gain": one.gain,
            "keep": one.keep,
            "kept": one.kept,
            "chosen": one.candidate == choice.candidate,
        }
        for one in candidates
    ]


def tries_csv(candidates: Sequence[Candidate], choice: Choice) -> str:
    """Return tries.csv; the columns gain and keep have the names of the measures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("candidate", "method", "settings", "kept", "chosen")
    writer.writerow([*names[:3], f"dev_{choice.gain}", f"dev_{choice.keep}", *names[3:]])
    for row in dev_rows(candidates, choice):
        writer.writerow(
            [*(row[name] for name in names[:3]), row["gain"], row["keep"], *(row[name] for name in names[3:])]
        )
    return text.getvalue()


def answer_rows(
    answers: Mapping[str, Sequence[Answered]], is_in_language: Callable[[str], bool] | None
) -> list[dict[str, Any]]:
    """Return the rows of answers.jsonl: an answer of a model to a question."""
    return [
        {"model": model, **vars(one), "in_language": is_in_language(one.answer) if is_in_language else None}
        for model, given in answers.items()
        for one in given
    ]


def asked(by_template: Mapping[str, bool], titles: Mapping[str, str]) -> str:
    """Return how the models were asked: `Plain prompts: base, CT. By the chat template: chat model, adapted model.`"""
    groups = {"Plain prompts": False, "By the chat template": True}
    parts = []
    for words, wanted in groups.items():
        if named := [title for model, title in titles.items() if by_template.get(model) is wanted]:
            parts.append(f"{words}: {', '.join(named)}.")
    return " ".join(parts)


def text_read(counts: Sequence[Counts], ct_tokens: int, language: str) -> TextOfBudget | None:
    """Return what CT read of the language's text; None if no blocks hold so many tokens."""
    rows = text_of_budgets.by_budget(counts, [ct_tokens])
    return next((row for row in rows if row.language == language), None)


def steps(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, float]]:
    """Return the steps of a run in their order: name, stages, seconds."""
    sums: dict[str, tuple[int, float]] = {}
    for record in stages:
        kind = str(record["kind"])
        split = f" {record['settings']['split']}" if kind == "eval" else ""
        name = STEPS.get(f"{kind}{split}", kind)
        count, seconds = sums.get(name, (0, 0.0))
        sums[name] = (count + 1, seconds + float(record["seconds"]))
    order = [name for name in STEPS.values() if name in sums] + [name for name in sums if name not in STEPS.values()]
    return [(name, *sums[name]) for name in order]
