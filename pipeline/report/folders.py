"""`slackmerge report FOLDER...`: the report of any results, of one folder or of several beside each other.

A folder is one that a report of ours was written to (outputs/<experiment>), or one that lm-eval wrote by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import BadInput
from eval.task_set import UNDETERMINED
from pipeline.report import lm_eval_folder, report_sources
from pipeline.report.records import ReportPaths, Subject

GIVEN = "lm-eval"


def report(folders: Sequence[Path], out: Path | None = None) -> ReportPaths:
    """Write a report over the folders to `out`.

    Left out: one report of ours is written again where it lies, anything else goes to `report`. Raises BadInput.
    """
    ours, theirs = {}, []
    for folder in folders:
        if folder.is_dir() and lm_eval_folder.is_one(folder):
            theirs.append(folder)
        else:
            found = report_sources.read(folder)
            title = found.subject.title if found.subject.title not in ours else str(folder)
            ours[title] = found
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
        except ValueError:  # it names a file that lies aside
            named = ", ".join(map(str, folders))
            raise BadInput(f"{named}: their scored items differ. Score them with the same tasks and limit.") from None
