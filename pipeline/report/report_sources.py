"""The files of a report's records: a list next to the report, from which it can be drawn again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import read_jsonl, write_json
from common.validation import read_json
from pipeline.old_names import current_method
from pipeline.report.records import Audit, Choice, Evaluation, FrontierPoint, ReportPaths, Subject

FILE = "sources.json"


@dataclass(frozen=True)
class Sources:
    """All inputs of `render`, as paths.

    stages: a stage.json and how many cells needed the stage. items: folders of an `items` stage, of which `split` was
    scored. leaks: a leaks.json, where leaks were looked for. untuned: of tuned methods, the first of their tries.
    frontier: every setting of every method's knob, where all were scored.
    """

    subject: Subject
    evaluations: Sequence[Evaluation]
    audits: Sequence[Audit] = ()
    choices: Sequence[Choice] = ()
    stages: Sequence[tuple[Path, int]] = ()
    items: Sequence[Path] = ()
    split: str = "test"
    leaks: Path | None = None
    untuned: Sequence[Evaluation] = ()
    frontier: Sequence[FrontierPoint] = ()

    def render(self, out: Path) -> ReportPaths:
        """Return the report, and this file beside it."""
        from pipeline import report
        from pipeline.report import hypotheses, sample_items, text_of_budgets

        records = [
            {**read_json(path), "cells": cells, "dev": dev_lines(path.parent), "vocabulary": new_tokens(path.parent)}
            for path, cells in self.stages
        ]
        leaks = read_json(self.leaks) if self.leaks else None
        items = sample_items.read_items(self.items, self.split)
        counts = text_of_budgets.read(path for path, _ in self.stages)
        made_from = (self.evaluations, self.audits, self.choices, records)
        asked = hypotheses.find(self.subject.title)
        shown = (leaks, items, self.untuned, counts)
        paths = report.render(*made_from, out, self.subject, *shown, frontier=self.frontier, hypotheses=asked)
        self.save(out)
        return paths

    @property
    def regime(self) -> str | None:
        """The regime that its cells are of, where the sweep had several."""
        return next((config.get("regime") for config in self.subject.configs.values()), None)

    def save(self, folder: Path) -> None:
        """Write sources.json, with places relative to the folder."""

        def place(path: Path) -> str:
            return os.path.relpath(path.absolute(), folder.absolute())

        def listed(rows: Sequence[Any]) -> list[dict[str, Any]]:
            return [{**vars(row), "folder": place(row.folder)} for row in rows]

        write_json(
            folder / FILE,
            {
                "subject": vars(self.subject),
                "evaluations": listed(self.evaluations),
                "audits": listed(self.audits),
                "choices": listed(self.choices),
                "stages": [[place(path), cells] for path, cells in self.stages],
                "items": [place(path) for path in self.items],
                "split": self.split,
                "leaks": place(self.leaks) if self.leaks else None,
                "untuned": listed(self.untuned),
                "frontier": [{**row, "dev": place(row["dev"])} for row in listed(self.frontier)],
            },
        )


def dev_lines(stage: Path) -> list[dict[str, Any]]:
    """Return the dev measurements of a training; empty if it made none, and for other stages."""
    log = stage / "log.jsonl"
    return [line for line in read_jsonl(log) if "dev_bits_per_byte" in line] if log.is_file() else []


def new_tokens(stage: Path) -> str | None:
    """Return a sentence about the new tokens that a stage gave a model; None for other stages."""
    from pipeline.stages.vocabulary import VOCABULARY, in_words

    file = stage / VOCABULARY
    if not file.is_file():
        return None
    return f"CT has {in_words(read_json(file))}. Bits per byte can be compared with the base's, loss per token cannot."


def read(folder: Path) -> Sources:
    """Read what `save` wrote. Raises BadInput if there is none, or if results have moved."""
    try:
        found = _read(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{folder}: {FILE} cannot be read ({error}). Pass the folder of a report, outputs/<name> or, of several "
            "languages, outputs/<name>/<language>; or run `slackmerge report` with the experiment's settings."
        ) from None
    scored = [row.folder for row in found.evaluations] + [
        folder for row in found.frontier for folder in (row.dev, row.folder)
    ]
    read = [path for path, _ in found.stages] + [folder / "scores.jsonl" for folder in scored]
    if lost := [path.parent for path in read if not path.exists()]:
        more = f", and {len(lost) - 1} entries more" if len(lost) > 1 else ""
        raise BadInput(f"{folder / FILE}: {lost[0]} is missing{more}. Restore the store, or run the experiment again.")
    return found


def _read(folder: Path) -> Sources:
    kept = read_json(folder / FILE)

    def place(path: str) -> Path:
        return Path(os.path.normpath(folder / path))

    def rows(kind: Any, name: str) -> list[Any]:
        known = ({**row, "method": current_method(row["method"])} for row in kept.get(name, ()))
        return [kind(**{**row, "folder": place(row["folder"])}) for row in known]

    subject = Subject(**kept["subject"])
    unfinished = (subject.unfinished[0], subject.unfinished[1]) if subject.unfinished else None
    return Sources(
        replace(subject, unfinished=unfinished, regimes=tuple(subject.regimes)),
        rows(Evaluation, "evaluations"),
        rows(Audit, "audits"),
        rows(Choice, "choices"),
        [(place(path), cells) for path, cells in kept["stages"]],
        [place(path) for path in kept["items"]],
        kept["split"],
        place(kept["leaks"]) if kept["leaks"] else None,
        rows(Evaluation, "untuned"),
        [replace(row, dev=place(str(row.dev))) for row in rows(FrontierPoint, "frontier")],
    )


def regimes_of(found: Sequence[Sources]) -> dict[str, Sources] | None:
    """Reports of one experiment by their regimes; None where they are of several experiments, or share a regime."""
    by_regime = {sources.regime: sources for sources in found if sources.regime}
    one_experiment = len({sources.subject.title for sources in found}) == 1
    return by_regime if one_experiment and len(by_regime) == len(found) > 1 else None


def together(folders: Mapping[str, Sources]) -> Sources:
    """Several reports as one, by their titles. Methods of one name are compared; reports of regimes keep their title.

    Raises BadInput if they are of several languages.
    """
    languages = {sources.subject.language for sources in folders.values()}
    if len(languages) > 1:
        raise BadInput(
            f"report: reports must be of one language, got {', '.join(sorted(languages))}. Pass those of one."
        )

    def named(rows: Sequence[Any], title: str) -> list[Any]:
        return [replace(row, method=f"{title}/{row.method}") for row in rows]

    first = next(iter(folders.values()))
    regimes = tuple(folders) if regimes_of(list(folders.values())) else ()
    title = first.subject.title if regimes else " and ".join(folders)
    return Sources(
        replace(first.subject, title=title, configs={}, unfinished=None, regimes=regimes),
        [row for title, sources in folders.items() for row in named(sources.evaluations, title)],
        [row for title, sources in folders.items() for row in named(sources.audits, title)],
        [row for title, sources in folders.items() for row in named(sources.choices, title)],
        list(dict.fromkeys((path, 1) for sources in folders.values() for path, _ in sources.stages)),
        first.items,
        first.split,
        frontier=[row for title, sources in folders.items() for row in named(sources.frontier, title)],
    )
