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
from common.validation import read_json
from pipeline.report.records import Audit, Choice, Evaluation, FrontierPoint, ReportInfo, ReportPaths
from pipeline.run import adapted_model
from pipeline.run_plan import RunPlan
from pipeline.stages.adapting import ADAPTED, SFT
from pipeline.stages.cell import Cell
from pipeline.stages.stage import Stage
from pipeline.stages.tuning import tuning_cells
from pipeline.store import RECORD, Entry

if TYPE_CHECKING:  # a plan or a rejected setting needs no report
    from pipeline.report.adapt import AdaptSources
    from pipeline.report.adapt_page import AdaptPaths
    from pipeline.report.sources import Sources

BETWEEN = "between-regimes"  # the folder of the report over all regimes
Entries = Mapping[str, Entry]  # of the store, by key


def write_report(plan: RunPlan, arguments: Sequence[str]) -> ReportPaths | AdaptPaths | None:
    """Write the report over all cells, in one folder per regime and language if there are several.

    Return the files of the first report; None if nothing was scored. The page has the `arguments` of the command line,
    and that stages are missing, if some are. Raises errors of the machine (disk space, permissions) as BadInput.
    """
    try:
        with user_errors():
            return _write_report(plan, arguments)
    except BadInput as error:
        raise BadInput(f"outputs={plan.outputs}: the report was not written: {error}") from error


def _write_report(plan: RunPlan, arguments: Sequence[str]) -> ReportPaths | AdaptPaths | None:
    entries = {stage.key: entry for stage in plan.stages if (entry := plan.store.find(stage))}
    several = len({language for _, language in plan.reports}) > 1
    written: ReportPaths | AdaptPaths | None = None
    of_regimes: list[tuple[str, Sources]] = []
    for (regime, language), cells in plan.reports.items():
        if not any(stage.key in entries for cell in cells for stage in cell.evals.values()):
            continue
        folder = plan.outputs / (regime or "") / (language if several else "")
        if cells[0].adapt:
            written = _write_adaptations(cells, entries, folder, arguments) or written
            continue
        sources = _sources(cells, entries, arguments)
        paths = sources.render(folder)
        print(paths.table)
        for path in (paths.results_csv, paths.results_md, paths.claims, paths.curves, paths.page):
            print(str(path))
        written = written or paths
        of_regimes += [(regime, sources)] if regime else []
    if of_regimes:
        from pipeline.report import regime_map

        for line in regime_map.write(of_regimes, plan.outputs):
            print(line)
        compare_regimes([sources for _, sources in of_regimes], plan.outputs)
    return written


def compare_regimes(found: Sequence[Sources], outputs: Path) -> None:
    """Write a report per language over all regimes, if the experiment has hypotheses that compare them."""
    from pipeline.report import hypotheses, sources

    stated = hypotheses.find(found[0].info.title)
    if stated is None or not any(hypotheses.regimes_of(one) for one in hypotheses.read(stated)):
        return
    languages = list(dict.fromkeys(one.info.language for one in found))
    for language in languages:
        named = sources.regimes_of([one for one in found if one.info.language == language])
        if named:
            folder = outputs / BETWEEN / (language if len(languages) > 1 else "")
            print(str(sources.together(named).render(folder).page))


def _info(cells: Sequence[Cell], arguments: Sequence[str], done: int, stages: int) -> ReportInfo:
    config = cells[0].config
    return ReportInfo(
        title=config.name,
        language=config.language.code,
        language_name=config.language.name,
        configs={str(cell): cell.config.model_dump() for cell in cells},
        command=f"slackmerge {shlex.join(arguments)}".strip(),
        unfinished=(done, stages) if done < stages else None,
    )


def _sources(cells: Sequence[Cell], entries: Entries, arguments: Sequence[str]) -> Sources:
    """List the inputs of one report."""
    from pipeline.report.sources import Sources

    def published(stages: Callable[[Cell], Mapping[str, Stage]]) -> dict[tuple[str, int, int], Path]:
        """Return the entries by method, CT budget and seed.

        What no budget changes belongs to many cells and is given once.
        """
        return {
            (method, cell.budget_of(method), cell.seed): entries[stage.key].path
            for cell in cells
            for method, stage in stages(cell).items()
            if stage.key in entries
        }

    config = cells[0].config
    leading = {name for name, method in config.merge.methods.items() if method.leads}
    search = config.merge.search
    samplers = {name: search.sampler for name, method in config.merge.methods.items() if search and method.space}
    judged = [cell.ct.tokens for cell in tuning_cells(config)]
    contamination = cells[0].contamination and entries.get(cells[0].contamination.key)
    uses = Counter(stage.key for cell in cells for stage in cell.stages)
    done = [(entries[key].path / RECORD, count) for key, count in uses.items() if key in entries]
    return Sources(
        info=_info(cells, arguments, len(done), len(uses)),
        evaluations=[Evaluation(*cell, path) for cell, path in published(lambda cell: cell.evals).items()],
        audits=[Audit(*cell, path) for cell, path in published(lambda cell: cell.merges).items()],
        choices=[
            Choice(*cell, path, leads=cell[0] in leading, judged=judged, sampler=samplers.get(cell[0]))
            for cell, path in published(lambda cell: cell.chosen).items()
        ],
        stages=done,
        items=[entries[stage.key].path for stage in cells[0].stages if stage.kind == "items" and stage.key in entries],
        split=config.eval.split,
        contamination=contamination.path / "leaks.json" if contamination else None,
        untuned=[Evaluation(*cell, path) for cell, path in published(lambda cell: cell.default_evals).items()],
        frontier=_frontier(cells, entries),
    )


def _frontier(cells: Sequence[Cell], entries: Entries) -> list[FrontierPoint]:
    """Return the settings of knobs that were scored on both splits; what no budget changes is given once."""
    found = {
        (method, cell.budget_of(method), cell.seed, number): FrontierPoint(
            method=method,
            ct_tokens=cell.budget_of(method),
            seed=cell.seed,
            settings=point.settings,
            dev=entries[point.dev.key].path,
            folder=entries[point.test.key].path,
        )
        for cell in cells
        for method, points in cell.frontier.items()
        for number, point in enumerate(points)
        if point.dev.key in entries and point.test.key in entries
    }
    return list(found.values())


def _write_adaptations(
    cells: Sequence[Cell], entries: Entries, out: Path, arguments: Sequence[str]
) -> AdaptPaths | None:
    """Write the report of each adaptation whose selection and test scores are there; return the first.

    Several cells get a folder each, named by budget and seed.
    """
    from pipeline.report import adapt_page

    first = None
    for cell in cells:
        sources = _adapt_sources(cell, entries, arguments)
        if sources is None:
            continue
        folder = out / str(cell).replace(" ", "-") if len(cells) > 1 else out
        paths = adapt_page.render(sources, folder)
        for line in (*map(str, paths.files), *_publish_model(cell, entries, paths, folder)):
            print(line)
        first = first or paths
    return first


def _publish_model(cell: Cell, entries: Entries, paths: AdaptPaths, folder: Path) -> list[str]:
    """Copy the model next to its report, and return what a terminal shows of it."""
    assert cell.adapt is not None
    entry = entries.get(cell.adapt.adapted.key)
    written = adapted_model.publish(entry.path, folder, paths.scores) if entry else None
    if written is None:
        return [paths.sentence, "no model was written; adapt.write=METHOD writes the best try of a method all the same"]
    return adapted_model.lines(written, paths.line)


def _adapt_sources(cell: Cell, entries: Entries, arguments: Sequence[str]) -> AdaptSources | None:
    """List the inputs of the report of a cell; None before the adapted model is scored on test."""
    from pipeline.report.adapt import AdaptSources, read_choice

    stages = cell.adapt
    assert stages is not None

    def published(named: Mapping[str, Stage]) -> dict[str, Path]:
        return {name: entries[stage.key].path for name, stage in named.items() if stage.key in entries}

    choice, tests = entries.get(stages.choose.key), published(stages.evals)
    if choice is None or not {SFT, ADAPTED} <= tests.keys():
        return None
    if read_choice(choice.path).is_chat_model:
        tests[ADAPTED] = tests[SFT]
    done = {stage: entries[stage.key] for stage in cell.stages if stage.key in entries}
    of_kind = {stage.kind: entry for stage, entry in reversed(done.items())}
    ct_tokens = cell.ct_tokens
    if cell.config.ct.whole_text and "ct_blocks" in of_kind:  # only the blocks know how many tokens the text has
        ct_tokens = int(read_json(of_kind["ct_blocks"].path / "counts.json")["tokens"])
    return AdaptSources(
        info=_info([cell], arguments, len(done), len(cell.stages)),
        choice=choice.path,
        tests=tests,
        answers=published(stages.answers),
        corpus=of_kind["corpus"].path if "corpus" in of_kind else None,
        stages=[(entry.path / RECORD, 1) for entry in done.values()],
        ct_tokens=ct_tokens,
    )
