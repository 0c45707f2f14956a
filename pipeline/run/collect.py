"""What of the store a report reads: the scores, audits, choices and records of a sweep's cells.

It is left beside the report, in sources.json: a report can be drawn anew from that and the store, without a plan.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.files import write_json
from pipeline.graph import Stage
from pipeline.plan import Cell
from pipeline.run.console import say
from pipeline.run.run_plan import RunPlan
from pipeline.store import Entry

if TYPE_CHECKING:
    from pipeline.report import ReportPaths

SOURCES = "sources.json"


@dataclass(frozen=True)
class Sources:
    """What the report of one language is made from. Folders are relative to the report's.

    evaluations, audits, choices: the fields of pipeline.report's records of these names, in their order; untuned:
    evaluations too.
    stages: entries of the store. leaks: the entry that looked for them. subject: the fields of its record.
    """

    evaluations: Sequence[Sequence[Any]]
    audits: Sequence[Sequence[Any]]
    choices: Sequence[Sequence[Any]]
    untuned: Sequence[Sequence[Any]]
    stages: Sequence[str]
    leaks: str | None
    subject: Mapping[str, Any]

    @staticmethod
    def read(folder: Path) -> Sources:
        """As a run left it beside its report. Raises BadInput where it did not, or where the store has lost a part."""
        file = folder / SOURCES
        try:
            sources = Sources(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(
                f"{folder}: {SOURCES} cannot be read ({error}); name the folder of a report, outputs/<name> or, "
                "of several languages, outputs/<name>/<language>; or say `report` and the experiment's settings"
            ) from None
        lost = [entry for entry in sources.stages if not (folder / entry).is_dir()]
        if lost:
            raise BadInput(
                f"{file}: {folder / lost[0]} is not there"
                + (f", and {len(lost) - 1} entries more" if len(lost) > 1 else "")
                + "; put the store back, or run the experiment again"
            )
        return sources


def write_report(plan: RunPlan, arguments: Sequence[str]) -> ReportPaths | None:
    """The report over all cells, a folder a language where there are several; None where nothing was scored yet.

    `arguments` of the command line stand on the page. The first language's files are returned.
    """
    store = plan.store
    entries = {stage.key: entry for stage in plan.stages if (entry := store.find(stage))}
    languages = list(dict.fromkeys(cell.language for cell in plan.cells))
    written = None
    for language in languages:
        cells = [cell for cell in plan.cells if cell.language == language]
        if any(stage.key in entries for cell in cells for stage in cell.evals.values()):
            folder = plan.outputs / language if len(languages) > 1 else plan.outputs
            paths = _write_language(cells, entries, folder, arguments)
            written = written or paths
    return written


def _write_language(
    cells: Sequence[Cell], entries: Mapping[str, Entry], folder: Path, arguments: Sequence[str]
) -> ReportPaths:
    """Writes the report of one language, and says where it lies. `entries`: what the store has, by key."""

    def place(entry: Entry) -> str:
        return os.path.relpath(entry.path, folder)

    def published(stages: Callable[[Cell], Mapping[str, Stage]]) -> dict[tuple[str, int, int], str]:
        """The entries by method, CT budget and seed; what no budget changes belongs to many cells and is given once."""
        return {
            (method, cell.budget_of(method), cell.seed): place(entries[stage.key])
            for cell in cells
            for method, stage in stages(cell).items()
            if stage.key in entries
        }

    config = cells[0].config
    leading = {name for name, method in config.merge.methods.items() if method.leads}
    chosen = published(lambda cell: cell.chosen)
    searched = cells[0].leaks and entries.get(cells[0].leaks.key)
    keys = dict.fromkeys(stage.key for cell in cells for stage in cell.stages)
    sources = Sources(
        [[*cell, path] for cell, path in published(lambda cell: cell.evals).items()],
        [[*cell, path] for cell, path in published(lambda cell: cell.merges).items()],
        [[*cell, path, cell[0] in leading] for cell, path in chosen.items()],
        [[*cell, path] for cell, path in published(lambda cell: cell.untuned).items()],
        [place(entries[key]) for key in keys if key in entries],
        place(searched) if searched else None,
        {
            "title": config.name,
            "language": config.language.code,
            "language_name": config.language.name,
            "configs": {str(cell): cell.config.model_dump() for cell in cells},
            "command": f"python -m pipeline {shlex.join(arguments)}".strip(),
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SOURCES, asdict(sources))
    return redraw(folder)


def redraw(folder: Path) -> ReportPaths:
    """Writes the report in a folder from the sources that lie there, and says where it lies. Raises BadInput."""
    sources = Sources.read(folder)
    from pipeline import report  # late: a plan or a refusal needs no plots

    def records(kind: Callable[..., Any], rows: Sequence[Sequence[Any]]) -> list[Any]:
        return [kind(method, tokens, seed, folder / path, *more) for method, tokens, seed, path, *more in rows]

    leaks = json.loads((folder / sources.leaks / "leaks.json").read_text(encoding="utf-8")) if sources.leaks else None
    paths = report.render(
        records(report.Evaluation, sources.evaluations),
        records(report.Audit, sources.audits),
        records(report.Choice, sources.choices),
        [Entry(folder / entry).record for entry in sources.stages],
        folder,
        report.Subject(**sources.subject),
        leaks,
    )
    if sources.untuned:
        report.write_untuned(records(report.Evaluation, sources.untuned), folder)
    say(paths.table)
    for path in (paths.results_csv, paths.results_md, paths.claims, paths.curves, paths.page):
        say(str(path))
    return paths
