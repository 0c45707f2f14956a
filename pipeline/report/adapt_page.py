"""The page of an adaptation: what was gained and lost, answers side by side, all tries. One self-contained file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report import adapt_charts, adapt_headline, adapt_tables, one_file, page_tables
from pipeline.report.adapt_measures import Measure
from pipeline.report.adapt_records import TITLES, AdaptSources, Answered, Candidate, Choice
from pipeline.report.adapt_tables import Column
from pipeline.report.claims import Answer
from pipeline.report.looks import INK, SOFT
from pipeline.report.text_of_budgets import TextOfBudget
from pipeline.report.trigrams import Identifier
from pipeline.report.vega import PAGE_COLOURS, colored, theme

TEMPLATE = "adapt_page.html.jinja"
KEPT_CONTROLS = "\n\t"


@dataclass(frozen=True)
class Found:
    """All that the page shows.

    columns: of the table of scores. answers: by model, in the order in which they stand side by side. identifier: of
    the language; None without a corpus. stages: the records of stage.json files.
    """

    sources: AdaptSources
    candidates: Sequence[Candidate]
    choice: Choice
    gain: Measure
    keep: Measure
    claims: Sequence[Answer]
    columns: Sequence[Column]
    answers: Mapping[str, Sequence[Answered]]
    identifier: Identifier | None
    stages: Sequence[Mapping[str, Any]]
    text: TextOfBudget | None = None
    asked: str = ""
    own_tasks: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        """The first sentences of the page."""
        return adapt_headline.sentences(self.claims, self.choice, self.candidates, self.gain, self.keep)


def render(found: Found) -> str:
    """Return the page. Questions and answers are untrusted: they are escaped, and controls are replaced."""
    subject, rows = found.sources.subject, adapt_tables.dev_rows(found.candidates, found.choice)
    steps = adapt_tables.steps(found.stages)
    return one_file.render(
        TEMPLATE,
        _script_data(found, rows),
        {"plain": plain},
        subject=subject,
        sentence=found.sentence,
        choice=found.choice,
        chosen=adapt_headline.name_of(found.choice),
        gain=found.gain,
        keep=found.keep,
        claims=found.claims,
        models=found.sources.shown,
        columns=found.columns,
        one_model=len(found.sources.shown) < len([name for name in TITLES if name in found.sources.tests]),
        answering=[(name, found.sources.shown.get(name, TITLES[name])) for name in found.answers],
        questions=_questions(found),
        text=found.text,
        asked=found.asked,
        own_tasks=found.own_tasks,
        errors=found.identifier.errors if found.identifier else None,
        rows=rows,
        steps=steps,
        spent=sum(seconds for _, _, seconds in steps),
        finished=max((str(record["finished"]) for record in found.stages), default="")[:16].replace("T", " "),
        versions=page_tables.distinct(record.get("versions") for record in found.stages),
        commits=[str(commit) for commit in page_tables.distinct(record.get("commit") for record in found.stages)],
        configs=page_tables.configs_text(subject.configs),
    )


def plain(text: str) -> str:
    """Return a text that a page can show: controls and lone surrogates become U+FFFD."""
    return "".join(
        "\ufffd" if unicodedata.category(letter) in ("Cc", "Cs") and letter not in KEPT_CONTROLS else letter
        for letter in text
    )


def _questions(found: Found) -> list[tuple[str, list[tuple[Answered, bool | None]]]]:
    """Each question with the answers of the models, in their order, and whether each is in the language."""
    judge = found.identifier.is_in_language if found.identifier else None
    every = list(found.answers.values())
    return [
        (together[0].question, [(one, judge(one.answer) if judge else None) for one in together])
        for together in zip(*every, strict=True)
    ]


def _script_data(found: Found, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What page.js reads: one chart, and nothing to choose."""
    table = adapt_charts.table(rows)
    titles = list(dict.fromkeys(str(row[0]) for row in table.rows))
    chart = adapt_charts.tries_map(titles, found.gain, found.keep)
    tables = {adapt_charts.MAP: table, "floor": adapt_charts.floor(rows, found.choice, found.keep)}
    label = adapt_charts.described(rows, found.gain, found.keep)
    return {
        "state": {},
        "looks": [],
        "measures": [],
        "tables": {name: each.packed() for name, each in tables.items()},
        "charts": [{**vars(chart), "spec": colored(chart.spec, PAGE_COLOURS), "label": label}],
        "config": theme(PAGE_COLOURS[INK], PAGE_COLOURS[SOFT], "var(--line)"),
        "colours": PAGE_COLOURS,
        "labels": {},
        "kinds": {},
    }
