"""What the report of an adaptation reads from the store; one report per cell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.validation import read_json
from pipeline.run import adapted_model
from pipeline.run.console import say
from pipeline.stages.adapting import ADAPTED, SFT
from pipeline.stages.cell import Cell
from pipeline.stages.stage import Stage
from pipeline.store import RECORD, Entry

if TYPE_CHECKING:
    from pipeline.report.adapt_records import AdaptSources
    from pipeline.report.adapt_report import AdaptPaths


def write(
    cells: Sequence[Cell], entries: Mapping[str, Entry], out: Path, arguments: Sequence[str]
) -> AdaptPaths | None:
    """Write the report of each adaptation whose choice and test scores are there; return the first.

    Several cells get a folder each, named by budget and seed. entries: what the store has, by key.
    """
    from pipeline.report import adapt_report

    first = None
    for cell in cells:
        sources = collect(cell, entries, arguments)
        if sources is None:
            continue
        folder = out / str(cell).replace(" ", "-") if len(cells) > 1 else out
        paths = adapt_report.render(sources, folder)
        for path in paths.files:
            say(str(path))
        for line in _given_away(cell, entries, paths, folder):
            say(line)
        first = first or paths
    return first


def _given_away(cell: Cell, entries: Mapping[str, Entry], paths: AdaptPaths, folder: Path) -> list[str]:
    """Leave the model beside its report, and return what a terminal shows of it."""
    assert cell.adapt is not None
    entry = entries.get(cell.adapt.adapted.key)
    written = adapted_model.publish(entry.path, folder, paths.scores) if entry else None
    if written is None:
        return [paths.sentence, "no model was written; adapt.write=METHOD writes the best try of a method all the same"]
    return adapted_model.lines(written, paths.line)


def collect(cell: Cell, entries: Mapping[str, Entry], arguments: Sequence[str]) -> AdaptSources | None:
    """Return what the report of a cell is made from; None before the adapted model is scored on test."""
    from pipeline.report import Subject
    from pipeline.report.adapt_records import AdaptSources

    stages, config = cell.adapt, cell.config
    assert stages is not None

    def found(named: Mapping[str, Stage]) -> dict[str, Path]:
        return {name: entries[stage.key].path for name, stage in named.items() if stage.key in entries}

    choice, tests = entries.get(stages.choose.key), found(stages.evals)
    if choice is None or not {SFT, ADAPTED} <= tests.keys():
        return None
    made = {stage: entries[stage.key] for stage in cell.stages if stage.key in entries}
    corpus = next((entry.path for stage, entry in made.items() if stage.kind == "corpus"), None)
    subject = Subject(
        config.name,
        config.language.code,
        config.language.name,
        {str(cell): config.model_dump()},
        f"slackmerge {shlex.join(arguments)}".strip(),
        (len(made), len(cell.stages)) if len(made) < len(cell.stages) else None,
    )
    return AdaptSources(
        subject,
        choice.path,
        _as_chosen(choice.path, tests),
        found(stages.answers),
        corpus,
        [(entry.path / RECORD, 1) for entry in made.values()],
        _ct_tokens(cell, made),
    )


def _ct_tokens(cell: Cell, made: Mapping[Stage, Entry]) -> int:
    """Return the tokens of CT; if it reads all of the text, only its blocks know them."""
    if cell.config.ct.whole_text:
        for stage, entry in made.items():
            if stage.kind == "ct_blocks":
                return int(read_json(entry.path / "counts.json")["tokens"])
    return cell.ct_tokens


def _as_chosen(choice: Path, tests: Mapping[str, Path]) -> dict[str, Path]:
    """The scores on test; those of the chat model are the adapted model's own where it was chosen."""
    from pipeline.report.adapt_records import read_choice

    return {**tests, ADAPTED: tests[SFT]} if read_choice(choice).is_chat_model else dict(tests)
