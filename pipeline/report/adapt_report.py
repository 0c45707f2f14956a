"""The files of an adaptation's report: one page, and the same numbers as CSV and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.files import write_atomic, write_json, write_jsonl
from common.validation import read_json
from pipeline.report import (
    adapt_claims,
    adapt_headline,
    adapt_page,
    adapt_tables,
    claims,
    results,
    text_of_budgets,
    trigrams,
)
from pipeline.report.adapt_measures import TestScores
from pipeline.report.adapt_records import (
    AdaptSources,
    Answered,
    Choice,
    read_answers,
    read_candidates,
    read_choice,
)
from pipeline.report.records import WITHOUT_CT, Evaluation


@dataclass(frozen=True)
class AdaptPaths:
    """The files that were written, and what they show.

    line: the choice and its test scores, for a terminal. sentence: the first ones of the page. scores: the table of all
    models as Markdown, for the model's card.
    """

    page: Path
    results_csv: Path
    tries_csv: Path
    answers: Path
    claims: Path
    choice: Choice
    line: str
    sentence: str
    scores: str

    @property
    def curves(self) -> None:
        """The figure of curves that other reports have; an adaptation has one budget."""

    @property
    def table(self) -> str:
        """What a terminal shows: the choice with its test scores, or why there is none."""
        return self.sentence if self.choice.is_chat_model else self.line

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that were written."""
        return (self.results_csv, self.tries_csv, self.answers, self.claims, self.page)


def render(sources: AdaptSources, out: Path) -> AdaptPaths:
    """Write report.html, results.csv, tries.csv, answers.jsonl and claims.json to `out`, each whole or not at all.

    Raises ValueError for models that answered different items, or for a measure that none was scored in.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = gather(sources)
    judge = found.identifier.is_in_language if found.identifier else None
    tokens = {True: 0, False: sources.ct_tokens}
    rows = results.gather(
        Evaluation(one.method, tokens[one.method in WITHOUT_CT], one.seed, one.folder) for one in sources.evaluations
    )
    line = adapt_headline.user_errors(found.claims, found.choice, found.gain, found.keep)
    paths = AdaptPaths(
        page=out / "report.html",
        results_csv=out / "results.csv",
        tries_csv=out / "tries.csv",
        answers=out / "answers.jsonl",
        claims=out / "claims.json",
        choice=found.choice,
        line=line,
        sentence=found.sentence,
        scores=adapt_tables.markdown(found.columns, sources.shown),
    )
    write_atomic(paths.results_csv, results.to_csv(rows))
    write_atomic(paths.tries_csv, adapt_tables.tries_csv(found.candidates, found.choice))
    write_atomic(paths.answers, lambda aside: write_jsonl(aside, adapt_tables.answer_rows(found.answers, judge)))
    write_json(paths.claims, claims.as_json(found.claims))
    write_atomic(paths.page, adapt_page.render(found))
    sources.save(out)
    return paths


def gather(sources: AdaptSources) -> adapt_page.Found:
    """Read and compare all that a run left."""
    subject = sources.subject
    candidates, choice = read_candidates(sources.choice), read_choice(sources.choice)
    scores = TestScores(sources.evaluations, subject.language, subject.language_name)
    gain, keep = scores.measure(choice.gain), scores.measure(choice.keep)
    identifier = trigrams.learn(sources.corpus, subject.language) if sources.corpus else None
    models = list(sources.shown)
    answers: dict[str, list[Answered]] = {name: read_answers(path) for name, path in sources.answered.items()}
    judge = identifier.is_in_language if identifier else None
    return adapt_page.Found(
        sources,
        candidates,
        choice,
        gain,
        keep,
        adapt_claims.answers(scores, gain, keep, choice.tolerance, adapted=not choice.is_chat_model),
        [
            *adapt_tables.columns(scores, scores.shown(gain, keep), models),
            *adapt_tables.answer_columns(answers, subject.language_name, judge),
        ],
        answers,
        identifier,
        [{**read_json(path), "cells": cells} for path, cells in sources.stages],
        adapt_tables.text_read(
            text_of_budgets.read(path for path, _ in sources.stages), sources.ct_tokens, subject.language
        ),
        adapt_tables.asked(scores.by_template, sources.shown),
        scores.own_tasks,
    )
