"""What of the store a report reads: the scores, audits, choices and records of a sweep's cells."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.plan import Cell, merged
from pipeline.run.console import say
from pipeline.run.run_plan import RunPlan
from pipeline.store import Store

if TYPE_CHECKING:
    from pipeline.report import Evaluation, ReportPaths


def write_report(plan: RunPlan, arguments: Sequence[str]) -> ReportPaths | None:
    """The report over all cells, a folder a language where there are several; None where nothing was scored yet.

    `arguments` of the command line stand on the page. The first language's files are returned.
    """
    languages = list(dict.fromkeys(cell.language for cell in plan.cells))
    written = None
    for language in languages:
        cells = [cell for cell in plan.cells if cell.language == language]
        if evaluations := _evaluations(cells, plan.store):
            folder = plan.outputs / language if len(languages) > 1 else plan.outputs
            paths = _write_language(cells, plan.store, evaluations, folder, arguments)
            written = written or paths
    return written


def _evaluations(cells: Sequence[Cell], store: Store) -> list[Evaluation]:
    from pipeline import report  # late: a plan or a refusal needs no plots

    return [
        report.Evaluation(method, cell.ct_tokens, cell.seed, entry.path)
        for cell in cells
        for method, stage in cell.evals.items()
        if (entry := store.find(stage))
    ]


def _write_language(
    cells: Sequence[Cell], store: Store, evaluations: Sequence[Evaluation], folder: Path, arguments: Sequence[str]
) -> ReportPaths:
    """Writes the report of one language, and says where it lies."""
    from pipeline import report

    merges = [(method, cell, stage) for cell in cells for method, stage in cell.merges.items()]
    audits = [
        report.Audit(method, cell.ct_tokens, cell.seed, entry.path)
        for method, cell, stage in merges
        if (entry := store.find(stage))
    ]
    choices = [
        report.Choice(method, cell.ct_tokens, cell.seed, entry.path)
        for method, cell, stage in merges
        if (entry := store.find(stage.parents["tune"]))
    ]
    searched = cells[0].leaks and store.find(cells[0].leaks)
    leaks = json.loads((searched.path / "leaks.json").read_text(encoding="utf-8")) if searched else None
    records = [entry.record for stage in merged(cells) if (entry := store.find(stage))]
    config = cells[0].config
    subject = report.Subject(
        config.name,
        config.language.code,
        config.language.name,
        {str(cell): cell.config.model_dump() for cell in cells},
        f"python -m pipeline {shlex.join(arguments)}".strip(),
    )
    paths = report.render(evaluations, audits, choices, records, folder, subject, leaks)
    say(report.terminal_table(report.gather(evaluations), subject.language))
    for path in (paths.results_csv, paths.results_md, paths.curves, paths.page):
        say(str(path))
    return paths
