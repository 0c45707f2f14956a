"""`make dashboard`: the comparison of an experiment in Weights & Biases, built from its report.

One run a method and seed carries the curve (a step a CT budget), so that wandb can draw any measure against tokens and
group by method, family, language or seed; one run carries the claims and the cost. A report in wandb's own format lays
them out. Where a key is known all of it is pushed; else the runs are offline and the layout is written as a file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import write_atomic
from pipeline.report import claims, data, merges, sources
from pipeline.report.charts.style import family_of
from pipeline.report.data import OVERALL
from pipeline.report.stages import StageRecords, read_stages
from pipeline.tracking import logged_in

LAYOUT = "dashboard.json"


def build(folder: Path, project: str = "slackmerge", entity: str = "") -> Path:
    """Write the runs to `folder`/wandb and the layout to dashboard.json; pushes both where a key is known.

    folder: of a report, outputs/<experiment>. Raises BadInput if there is none, or wandb's report API is missing.
    """
    if not (folder / sources.FILE).is_file():
        raise BadInput(f"{folder}: no {sources.FILE}. Pass the folder of a report, such as outputs/tiny.")
    found = sources.read(folder)
    online = bool(os.environ.get("WANDB_API_KEY")) or logged_in()
    _runs(found, folder, project, online)
    layout = report(found, project, entity or ("" if online else "ENTITY"))
    model = layout._to_model()  # wandb's own serialisation, which it has no public name for
    write_atomic(folder / LAYOUT, json.dumps(json.loads(model.model_dump_json(by_alias=True)), indent=1) + "\n")
    if online:
        layout.save()
        print(layout.url)
    else:
        print(f"{folder / LAYOUT}; no wandb key here. To push: `wandb login`, then `make dashboard` again, or")
        print(f"`wandb sync {folder / 'wandb'}/offline-run-*` for the runs alone")
    return folder / LAYOUT


def _runs(found: sources.Sources, folder: Path, project: str, online: bool) -> None:
    """One run per method and seed with its curve, and one of claims and cost."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    scores = data.gather(found.evaluations)
    recipes = merges.recipe_methods(found.audits)
    lost = {
        (merge.method, merge.ct_tokens, seed): share
        for merge in merges.read_audits(found.audits)
        for seed, share in merge.lost_top.items()
    }
    info = found.info
    quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True)

    def start(name: str, kind: str, config: dict[str, Any]) -> Any:
        return wandb.init(
            project=project,
            group=info.title,
            name=name,
            job_type=kind,
            dir=str(folder),
            mode="online" if online else "offline",
            config={"language": info.language, **config},
            settings=quiet,
            reinit="finish_previous",
        )

    for (method, seed), curve in scores.groupby(["method", "seed"], sort=False):
        config = {"method": method, "family": family_of(method, recipes), "seed": seed}
        run = start(f"{method} seed {seed}", "curve", config)
        for tokens, rows in curve.groupby("ct_tokens"):
            point: dict[str, Any] = {f"{row.task}/{row.metric}": row.value for row in rows.itertuples()}
            if (method, tokens, seed) in lost:
                point["lost of SFT's top 5%"] = lost[method, tokens, seed]
            run.log({"ct_tokens": tokens, **point})
        run.finish()
    run = start("claims", "claims", {})
    stated = claims.read(folder / "claims.json")
    if stated:
        columns: list[Any] = list(stated[0])
        run.log({"claims": wandb.Table(columns=columns, data=[[str(row[c]) for c in columns] for row in stated])})
    spent, saved = StageRecords([record for _, record in read_stages(found.stages)]).total_hours
    run.summary.update({"hours spent": spent, "hours saved by sharing": saved})
    run.finish()


def report(found: sources.Sources, project: str, entity: str) -> Any:
    """wandb's report: curves against tokens on a log axis, grouped by method; claims; discards; cost."""
    try:
        wr: Any = import_module("wandb_workspaces.reports.v2")  # an extra, whose types are not for strict checking
    except ImportError:
        raise BadInput("dashboard: needs wandb-workspaces. Run `pip install 'slackmerge[dashboard]'`.") from None

    info, scores = found.info, data.gather(found.evaluations)
    place = {"project": project, **({"entity": entity} if entity else {})}
    group = f"Group = '{info.title}'"

    def runset(kind: str, groupby: Sequence[str]) -> Any:
        return wr.Runset(project=project, name=kind, filters=f"{group} and JobType = '{kind}'", groupby=list(groupby))

    shown = [measure for measure in data.all_measures(scores, info.language) if measure.name in OVERALL]
    curves = [
        wr.LinePlot(
            title=f"{measure.language}: {measure.name}",
            x="ct_tokens",
            y=[f"{measure.task}/{measure.metric}"],
            log_x=True,
            title_x="continual pre-training tokens",
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for measure in shown
    ]
    discarded = wr.LinePlot(title="lost of SFT's top 5%", x="ct_tokens", y=["lost of SFT's top 5%"], log_x=True)
    cost = wr.BarPlot(title="hours", metrics=["hours spent", "hours saved by sharing"])
    blocks = [
        wr.H1(text="Data efficiency"),
        wr.PanelGrid(runsets=[runset("curve", ["config.language", "config.method"])], panels=curves),
        wr.H1(text="Discarded parameters"),
        wr.PanelGrid(runsets=[runset("curve", ["config.method"])], panels=[discarded]),
        wr.H1(text="Claims and cost"),
        wr.PanelGrid(runsets=[runset("claims", [])], panels=[wr.WeavePanelSummaryTable(table_name="claims"), cost]),
    ]
    title = f"slackmerge: {info.title}, {info.language_name}"
    return wr.Report(**place, title=title[:128], description="By make dashboard.", blocks=blocks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m pipeline.dashboard outputs/tiny [project] [entity]`; return 2 if there is no such report."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not given:
            raise BadInput("dashboard: missing. Pass the folder of a report, such as outputs/tiny.")
        build(Path(given[0]), *given[1:3])
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
