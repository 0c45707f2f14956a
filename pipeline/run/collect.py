"""The records of a store that a report reads: scores, audits, selections and stages of a sweep's cells.

Their list is next to the report, in sources.json: from that and the store, a report can be drawn again without a plan.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import BadInput, user_errors
from pipeline.run import collect_adapt
from pipeline.run.console import say
from pipeline.run_plan import RunPlan
from pipeline.stages.cell import Cell
from pipeline.stages.stage import Stage
from pipeline.stages.tuning import tuning_cells
from pipeline.store import RECORD, Entry

if TYPE_CHECKING:
    from pipeline.report import FrontierPoint, ReportPaths
    from pipeline.report.adapt_report import AdaptPaths
    from pipeline.report.report_sources import Sources

BETWEEN = "between-regimes"  # the folder of the report over all regimes


def write_report(plan: RunPlan, arguments: Sequence[str]) -> ReportPaths | AdaptPaths | None:
    """Call `_write_report`; raise errors of the machine (disk space, permissions) as BadInput that names the folder."""
    try:
        with user_errors():
            return _write_report(plan, arguments)
    except BadInput as error:
        raise BadInput(f"outputs={plan.outputs}: the report was not written: {error}") from error


def _write_report(plan: RunPlan, arguments: Sequence[str]) -> ReportPaths | AdaptPaths | None:
    """Return the report over all cells, one folder per regime and language where there are several; None if nothing was
    scored.

    `arguments` of the command line stand on the page, and that stages are missing, where some are. The first report's
    files are returned.
    """
    store = plan.store
    entries = {stage.key: entry for stage in plan.stages if (entry := store.find(stage))}
    several = len({language for _, language in plan.reports}) > 1
    written: ReportPaths | AdaptPaths | None = None
    found: list[tuple[str, Sources]] = []
    for (regime, language), cells in plan.reports.items():
        if any(stage.key in entries for cell in cells for stage in cell.evals.values()):
            folder = plan.outputs / (regime or "") / (language if several else "")
            if cells[0].adapt:
                written = collect_adapt.write(cells, entries, folder, arguments) or written
                continue
            sources = _sources(cells, entries, arguments)
            paths = sources.render(folder)
            _tell(paths)
            written = written or paths
            found += [(regime, sources)] if regime else []
    if found:
        from pipeline.report import regime_map

        for line in regime_map.write(found, plan.outputs):
            say(line)
        compare_regimes([sources for _, sources in found], plan.outputs)
    return written


def compare_regimes(found: Sequence[Sources], outputs: Path) -> None:
    """A report per language over all regimes, if the experiment has hypotheses that compare them."""
    from pipeline.report import hypotheses, report_sources

    stated = hypotheses.find(found[0].subject.title)
    if stated is None or not any(hypotheses.regimes_of(one) for one in hypotheses.read(stated)):
        return
    languages = list(dict.fromkeys(sources.subject.language for sources in found))
    for language in languages:
        named = report_sources.regimes_of([one for one in found if one.subject.language == language])
        if named:
            folder = outputs / BETWEEN / (language if len(languages) > 1 else "")
            say(str(report_sources.together(named).render(folder).page))


def _tell(paths: ReportPaths) -> None:
    say(paths.table)
    for path in (paths.results_csv, paths.results_md, paths.claims, paths.curves, paths.page):
        say(str(path))


def _sources(cells: Sequence[Cell], entries: Mapping[str, Entry], arguments: Sequence[str]) -> Sources:
    """List the inputs of one report. `entries`: those of the store, by key."""
    from pipeline import report  # late: a plan or a refusal needs no plots
    from pipeline.report.report_sources import Sources

    def published(stages: Callable[[Cell], Mapping[str, Stage]]) -> dict[tuple[str, int, int], Path]:
        """Return the entries by method, CT budget and seed; what no budget changes belongs to many cells and is given
        once.
        """
        return {
            (method, cell.budget_of(method), cell.seed): entries[stage.key].path
            for cell in cells
            for method, stage in stages(cell).items()
            if stage.key in entries
        }

    evaluations = [report.Evaluation(*cell, path) for cell, path in published(lambda cell: cell.evals).items()]
    audits = [report.Audit(*cell, path) for cell, path in published(lambda cell: cell.merges).items()]
    leading = {name for name, method in cells[0].config.merge.methods.items() if method.leads}
    chosen = published(lambda cell: cell.chosen)
    judged = [judge.ct.tokens for judge in tuning_cells(cells[0].config)]
    choices = [report.Choice(*cell, path, cell[0] in leading, judged) for cell, path in chosen.items()]
    searched = cells[0].leaks and entries.get(cells[0].leaks.key)
    uses = Counter(stage.key for cell in cells for stage in cell.stages)
    config = cells[0].config
    made = [(entries[key].path / RECORD, count) for key, count in uses.items() if key in entries]
    subject = report.Subject(
        config.name,
        config.language.code,
        config.language.name,
        {str(cell): cell.config.model_dump() for cell in cells},
        f"slackmerge {shlex.join(arguments)}".strip(),
        (len(made), len(uses)) if len(made) < len(uses) else None,
    )
    return Sources(
        subject,
        evaluations,
        audits,
        choices,
        made,
        [entries[stage.key].path for stage in cells[0].stages if stage.kind == "items" and stage.key in entries],
        config.eval.split,
        searched.path / "leaks.json" if searched else None,
        [report.Evaluation(*cell, path) for cell, path in published(lambda cell: cell.untuned).items()],
        _frontier(cells, entries),
    )


def _frontier(cells: Sequence[Cell], entries: Mapping[str, Entry]) -> list[FrontierPoint]:
    """Return the settings of knobs that were scored on both splits; what no budget changes is given once."""
    from pipeline.report import FrontierPoint

    found = {
        (method, cell.budget_of(method), cell.seed, number): FrontierPoint(
            method,
            cell.budget_of(method),
            cell.seed,
            point.settings,
            entries[point.dev.key].path,
            entries[point.test.key].path,
        )
        for cell in cells
        for method, points in cell.frontier.items()
        for number, point in enumerate(points)
        if point.dev.key in entries and point.test.key in entries
    }
    return list(found.values())
