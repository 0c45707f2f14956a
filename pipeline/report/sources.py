"""`slackmerge report FOLDER...`: the report of any results, of one folder or of several next to each other.

A folder is one that a report of ours was written to (outputs/<experiment>), or one that lm-eval wrote. Next to a report
is the list of its records, sources.json, from which it can be drawn again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.files import read_jsonl, write_json
from common.validation import read_json
from eval.task_set import UNDETERMINED
from pipeline.old_names import current_method
from pipeline.report.records import (
    Audit,
    Choice,
    Evaluation,
    FrontierPoint,
    ReportInfo,
    ReportPaths,
    absolute,
    relative,
)

if TYPE_CHECKING:
    from pipeline.report.adapt_page import AdaptPaths
    from pipeline.report.analysis import Inputs

FILE = "sources.json"
GIVEN = "lm-eval"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The inputs of a report as paths.

    stages: a stage.json and how many cells needed the stage. items: folders of an `items` stage, of which `split` was
    scored. contamination: a leaks.json, if it was looked for. untuned: of tuned methods, the first of their trials.
    frontier: every setting of every method's knob, if all were scored.
    """

    info: ReportInfo
    evaluations: Sequence[Evaluation]
    audits: Sequence[Audit] = ()
    choices: Sequence[Choice] = ()
    stages: Sequence[tuple[Path, int]] = ()
    items: Sequence[Path] = ()
    split: str = "test"
    contamination: Path | None = None
    untuned: Sequence[Evaluation] = ()
    frontier: Sequence[FrontierPoint] = ()

    def render(self, out: Path) -> ReportPaths:
        """Write the report, and sources.json next to it."""
        from pipeline import report

        paths = report.render(self.inputs(), out)
        self.save(out)
        return paths

    def inputs(self) -> Inputs:
        """Read the records of stages, the items and contamination, and find the hypotheses of the experiment."""
        from pipeline.report import hypotheses, samples
        from pipeline.report.analysis import Inputs
        from pipeline.report.stages import new_tokens, read_counts, read_stages

        records = read_stages(self.stages)
        return Inputs(
            info=self.info,
            evaluations=self.evaluations,
            audits=self.audits,
            choices=self.choices,
            stages=[
                {**record, "dev": _dev_lines(path.parent), "vocabulary": new_tokens(path.parent)}
                for path, record in records
            ],
            items=samples.read_items(self.items, self.split),
            contamination=read_json(self.contamination) if self.contamination else None,
            untuned=self.untuned,
            counts=read_counts(records),
            frontier=self.frontier,
            hypotheses=hypotheses.find(self.info.title),
        )

    def save(self, folder: Path) -> None:
        """Write sources.json, with paths relative to the folder."""

        def listed(rows: Sequence[Any]) -> list[dict[str, Any]]:
            return [{**vars(row), "folder": relative(row.folder, folder)} for row in rows]

        write_json(
            folder / FILE,
            {
                "subject": vars(self.info),
                "evaluations": listed(self.evaluations),
                "audits": listed(self.audits),
                "choices": listed(self.choices),
                "stages": [[relative(path, folder), cells] for path, cells in self.stages],
                "items": [relative(path, folder) for path in self.items],
                "split": self.split,
                "leaks": relative(self.contamination, folder) if self.contamination else None,
                "untuned": listed(self.untuned),
                "frontier": [{**row, "dev": relative(row["dev"], folder)} for row in listed(self.frontier)],
            },
        )


def _dev_lines(stage: Path) -> list[dict[str, Any]]:
    """Return the dev measurements of a training; empty if it made none, and for other stages."""
    log = stage / "log.jsonl"
    return [line for line in read_jsonl(log) if "dev_bits_per_byte" in line] if log.is_file() else []


def read(folder: Path) -> Sources:
    """Read what `save` wrote. Raises BadInput if there is none, or if results have moved."""
    try:
        sources = _read(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{folder}: {FILE} cannot be read ({error}). Pass the folder of a report, outputs/<name> or, of several "
            "languages, outputs/<name>/<language>; or run `slackmerge report` with the experiment's settings."
        ) from None
    scored = [one.folder for one in sources.evaluations] + [
        split for one in sources.frontier for split in (one.dev, one.folder)
    ]
    needed = [path for path, _ in sources.stages] + [split / "scores.jsonl" for split in scored]
    if lost := [path.parent for path in needed if not path.exists()]:
        more = f", and {len(lost) - 1} entries more" if len(lost) > 1 else ""
        raise BadInput(f"{folder / FILE}: {lost[0]} is missing{more}. Restore the store, or run the experiment again.")
    return sources


def _read(folder: Path) -> Sources:
    kept = read_json(folder / FILE)

    def rows(kind: Any, name: str, *paths: str) -> list[Any]:
        return [
            kind(
                **{
                    **row,
                    "method": current_method(row["method"]),
                    **{path: absolute(row[path], folder) for path in ("folder", *paths)},
                }
            )
            for row in kept.get(name, ())
        ]

    return Sources(
        info=ReportInfo.of_json(kept["subject"]),
        evaluations=rows(Evaluation, "evaluations"),
        audits=rows(Audit, "audits"),
        choices=rows(Choice, "choices"),
        stages=[(absolute(path, folder), cells) for path, cells in kept["stages"]],
        items=[absolute(path, folder) for path in kept["items"]],
        split=kept["split"],
        contamination=absolute(kept["leaks"], folder) if kept["leaks"] else None,
        untuned=rows(Evaluation, "untuned"),
        frontier=rows(FrontierPoint, "frontier", "dev"),
    )


def regimes_of(reports: Sequence[Sources]) -> dict[str, Sources] | None:
    """Return reports of one experiment by their regimes; None if several experiments, or two of one regime."""
    by_regime = {sources.info.regime: sources for sources in reports if sources.info.regime}
    one_experiment = len({sources.info.title for sources in reports}) == 1
    return by_regime if one_experiment and len(by_regime) == len(reports) > 1 else None


def together(reports: Mapping[str, Sources]) -> Sources:
    """Return several reports as one, by their titles. Methods of one name are compared; regimes keep their title.

    Raises BadInput if they are of several languages.
    """
    languages = {sources.info.language for sources in reports.values()}
    if len(languages) > 1:
        raise BadInput(
            f"report: reports must be of one language, got {', '.join(sorted(languages))}. Pass those of one."
        )

    def named(rows: str) -> list[Any]:
        return [
            replace(row, method=f"{title}/{row.method}")
            for title, sources in reports.items()
            for row in getattr(sources, rows)
        ]

    first = next(iter(reports.values()))
    regimes = tuple(reports) if regimes_of(list(reports.values())) else ()
    title = first.info.title if regimes else " and ".join(reports)
    return Sources(
        info=replace(first.info, title=title, configs={}, unfinished=None, regimes=regimes),
        evaluations=named("evaluations"),
        audits=named("audits"),
        choices=named("choices"),
        stages=list(dict.fromkeys((path, 1) for sources in reports.values() for path, _ in sources.stages)),
        items=first.items,
        split=first.split,
        frontier=named("frontier"),
    )


def render_folders(folders: Sequence[Path], out: Path | None = None) -> ReportPaths | AdaptPaths:
    """Write a report over the folders to `out`.

    Without `out`, one report of ours is written to its folder again, anything else to `report`. Raises BadInput.
    """
    from pipeline.report import adapt, adapt_page, lm_eval_folder

    adapted = [folder for folder in folders if (folder / adapt.FILE).is_file()]
    if adapted:
        if len(folders) > 1:
            raise BadInput(f"{adapted[0]}: holds an adaptation, which is not compared with others. Give it alone.")
        return adapt_page.render(adapt.read_sources(adapted[0]), out or adapted[0])
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
        return together(ours).render(out or Path("report"))
    except ValueError as error:  # checkpoints that were not scored on the same items
        raise BadInput(str(error)) from None


def _by_title(folders: Sequence[Path]) -> dict[str, Sources]:
    """Return reports by regime if they are of one experiment, else by experiment, or by folder if that is taken."""
    reports = [read(folder) for folder in folders]
    if regimes := regimes_of(reports):
        return regimes
    titled: dict[str, Sources] = {}
    for folder, sources in zip(folders, reports, strict=True):
        title = sources.info.title
        titled[str(folder) if title in titled else title] = sources
    return titled


def _of_lm_eval(folders: Sequence[Path], out: Path) -> ReportPaths:
    from pipeline import report
    from pipeline.report import lm_eval_folder
    from pipeline.report.analysis import Inputs

    with tempfile.TemporaryDirectory() as temporary:
        scored = [one for folder in folders for one in lm_eval_folder.scored(folder, Path(temporary))]
        evaluations = lm_eval_folder.apart(scored)
        info = ReportInfo(
            title=" and ".join(evaluation.method for evaluation in evaluations),
            language=UNDETERMINED,
            language_name=GIVEN,
            configs={},
            command=f"slackmerge report {' '.join(map(str, folders))}",
            given=True,
        )
        try:
            return report.render(Inputs(info=info, evaluations=evaluations), out)
        except ValueError:  # it names a file elsewhere
            named = ", ".join(map(str, folders))
            raise BadInput(f"{named}: their scored items differ. Score them with the same tasks and limit.") from None
