"""`slackmerge report FOLDER...`: the report of any results, of one folder or of several beside each other.

A folder is one that a report of ours was written to (outputs/<experiment>), or one that lm-eval wrote by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import BadInput
from eval.task_set import UNDETERMINED
from pipeline.report import adapt_records, adapt_report, lm_eval_folder, report_sources
from pipeline.report.adapt_report import AdaptPaths
from pipeline.report.records import ReportPaths, Subject

GIVEN = "lm-eval"


def report(folders: Sequence[Path], out: Path | None = None) -> ReportPaths | AdaptPaths:
    """Write a report over the folders to `out`.

    Left out: one report of ours is written again where it lies, anything else goes to `report`. Raises BadInput.
    """
    adapted = [folder for folder in folders if (folder / adapt_records.FILE).is_file()]
    if adapted:
        if len(folders) > 1:
            raise BadInput(f"{adapted[0]}: holds an adaptation, which is not compared with others. Give it alone.")
        return adapt_report.render(adapt_records.read_sources(adapted[0]), out or adapted[0])
    theirs = [folder for folder in folders if folder.is_dir() and lm_eval_folder.is_one(folder)]
    ours = _by_title([folder for folder in folders if folder not in theirs])
    if ours and theirs:
        raise BadInput(
            "report: cannot compare lm-eval folders with slackmerge reports, as they score different "
            "items. Pass one kind."
        )
    try:
        if theirs:
            return _of_lm_eval(theirs, out or Path("report"))
        if len(ours) == 1:
            return next(iter(ours.values())).render(out or folders[0])
        return report_sources.together(ours).render(out or Path("report"))
    except ValueError as error:  # checkpoints that were not scored on the same items
        raise BadInput(str(error)) from None


def _by_title(folders: Sequence[Path]) -> dict[str, report_sources.Sources]:
    """Reports by regime if they are regimes of one experiment, else by experiment, or by folder if that is taken."""
    found = [report_sources.read(folder) for folder in folders]
    if regimes := report_sources.regimes_of(found):
        return regimes
    titled: dict[str, report_sources.Sources] = {}
    for folder, sources in zip(folders, found, strict=True):
        title = sources.subject.title
        titled[str(folder) if title in titled else title] = sources
    return titled


def _of_lm_eval(folders: Sequence[Path], out: Path) -> ReportPaths:
    with tempfile.TemporaryDirectory() as aside:
        scored = [one for folder in folders for one in lm_eval_folder.scored(folder, Path(aside))]
        evaluations = lm_eval_folder.apart(scored)
        names = [evaluation.method for evaluation in evaluations]
        command = f"slackmerge report {' '.join(map(str, folders))}"
        subject = Subject(" and ".join(names), UNDETERMINED, GIVEN, {}, command, given=True)
        from pipeline import report

        try:
            return report.render(evaluations, [], [], [], out, subject)
        except ValueError:  # it names a file elsewhere
            named = ", ".join(map(str, folders))
            raise BadInput(f"{named}: their scored items differ. Score them with the same tasks and limit.") from None
