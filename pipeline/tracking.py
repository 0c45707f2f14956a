"""Weights & Biases: one run a stage that trains or scores, grouped by experiment. It never stops the pipeline.

Runs go to `outputs/<experiment>/wandb`. Without a key, or if wandb's server cannot be reached, they are offline;
`wandb sync outputs/<experiment>/wandb/offline-run-*` sends them later. WANDB_MODE wins over `tracking.wandb`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import wraps
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, ParamSpec

from common.files import read_jsonl
from pipeline.arms import ARMS
from pipeline.config import Config
from pipeline.execute import Job, Tracker, no_tracker
from pipeline.graph import Stage
from pipeline.kinds import KINDS

P = ParamSpec("P")
log = logging.getLogger(__name__)


def mode(config: Config) -> str:
    """online, offline or off; `auto` is online where a key is known."""
    if config.tracking.wandb != "auto":
        return config.tracking.wandb
    return "online" if os.environ.get("WANDB_API_KEY") or logged_in() else "offline"


def logged_in() -> bool:
    """Whether this machine has a key of wandb's."""
    try:
        return netrc().authenticators("api.wandb.ai") is not None
    except (OSError, NetrcParseError):
        return False


def harmless(function: Callable[P, Any]) -> Callable[P, Any]:
    """The function, with whatever it raises turned into a line in the log: tracking is not worth a run."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # whatever a service and its client can raise
            log.warning("tracking: %s: %s", type(error).__name__, " ".join(str(error).split())[:200])
            return None

    return guarded


def tracker(config: Config, folder: Path) -> Tracker:
    """What the executor wraps around the making of a stage."""
    if mode(config) == "off":
        return no_tracker

    @contextlib.contextmanager
    def track(job: Job) -> Iterator[None]:
        tracked = KINDS[job.stage.kind].tracked
        run = start(config, folder, str(job.stage), job.stage.kind, about(job.stage)) if tracked else None
        if run is None:
            yield
            return
        say = job.on_log
        send = harmless(lambda record: run.log(record))
        job.on_log = lambda record: (say(record), send(record), None)[-1]
        try:
            yield
        except BaseException:
            harmless(lambda: run.finish(exit_code=1))()
            raise
        harmless(lambda: run.summary.update(scores(job.out)))()
        harmless(lambda: run.finish())()

    return track


def about(stage: Stage) -> dict[str, Any]:
    """What a run's config says of its stage."""
    return {
        "stage": dict(stage.settings),
        "options": dict(stage.options),
        "method": method_of(stage),
        **cell_of(stage),
    }


def method_of(stage: Stage) -> str | None:
    """The method of the results that a stage belongs to, from its readable name; None of what several share."""
    if stage.kind not in ("eval", "tune", "merge", "weights"):
        return None
    if not re.search(r"-s\d+$", stage.slug):  # no seed changes it
        return "base"
    name = re.sub(r"(-[\d.]+[kMB]?)?-s\d+$", "", stage.slug.partition("-")[2])
    arm = name.replace("-", "_")
    return arm if arm in ARMS else name


@harmless
def start(config: Config, folder: Path, name: str, job_type: str, described: dict[str, Any]) -> Any:
    """A wandb run, or None where there can be none."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    folder.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(
        silent=True,
        console="off",
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
        disable_git=True,
    )
    return wandb.init(
        project=config.tracking.project,
        group=config.name,
        name=name,
        job_type=job_type,
        dir=str(folder),
        mode="online" if mode(config) == "online" else "offline",
        config={"language": config.language.code, **described},
        settings=quiet,
        reinit="finish_previous",
    )


def cell_of(stage: Stage) -> dict[str, Any]:
    """The budget and the seed of a stage: its own, or those of the CT that it comes from; null where none is."""
    cell = {
        "ct_tokens": stage.settings.get("tokens") if stage.kind == "ct" else None,
        "seed": stage.settings.get("seed"),
    }
    for parent in map(cell_of, stage.parents.values()):
        cell = {name: value if value is not None else parent[name] for name, value in cell.items()}
    return cell


def scores(out: Path) -> dict[str, float]:
    """The scores that an evaluation left, by task and metric."""
    path = out / "scores.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    return {f"{row['task']}/{row['metric']}": row["value"] for row in rows}


@harmless
def report(config: Config, results_csv: Path, curves: Path, page: Path) -> None:
    """A last run that carries the results table, the curves and the page."""
    if mode(config) == "off":
        return
    run = start(config, results_csv.parent.absolute(), "report", "report", {})
    if run is None:
        return
    import pandas
    import wandb

    run.log({"results": wandb.Table(dataframe=pandas.read_csv(results_csv)), "curves": wandb.Image(str(curves))})
    run.save(str(page), base_path=str(page.parent), policy="now")
    run.finish()
