"""Weights & Biases: one run per stage that trains or scores, grouped by experiment. It never stops the pipeline.

Runs go to `outputs/<experiment>/wandb`. Without a key, or if wandb's server cannot be reached, they are offline; `wandb
sync outputs/<experiment>/wandb/offline-run-*` sends them later. WANDB_MODE wins over `tracking.wandb`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from configparser import Error as ConfigError
from functools import cache, wraps
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, ParamSpec
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from common.files import read_jsonl
from pipeline.config import Config
from pipeline.execute import Job, Tracker, no_tracker
from pipeline.stages.stage import Stage

MODE, SERVER = "WANDB_MODE", "WANDB_BASE_URL"  # wandb's own variables
MODES = {"run": "online", "shared": "online", "dryrun": "offline", "disabled": "off"}  # what wandb calls them too
PUBLIC = "https://api.wandb.ai"
REACHED_WITHIN_S = 3.0  # seconds for a name and a connection
STARTED_WITHIN_S = 20.0  # seconds that wandb may try to start a run online; by itself it tries for 90

P = ParamSpec("P")
PrintLine = Callable[[str], None]
log = logging.getLogger(__name__)


def mode(config: Config) -> str:
    """online, offline or off; `auto` is online where a key is known.

    WANDB_MODE wins, but what the config switches off stays off.
    """
    given, wanted = os.environ.get(MODE, "").lower(), str(config.tracking.wandb)
    given = MODES.get(given, given)
    if wanted != "off" and given in ("online", "offline", "off"):
        return given
    if wanted != "auto":
        return wanted
    return "online" if os.environ.get("WANDB_API_KEY") or logged_in() else "offline"


def server() -> str:
    """Return the address of wandb's server: of the environment, of `wandb login --host`, else the public one."""
    if address := os.environ.get(SERVER):
        return address
    settings, folder = ConfigParser(), os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    with contextlib.suppress(ConfigError, OSError, UnicodeDecodeError):
        settings.read(Path(folder).expanduser() / "settings")
        return settings.get("default", "base_url", fallback=PUBLIC)
    return PUBLIC


@cache
def is_reachable(address: str) -> bool:
    """Return whether a connection to a server, or to the proxy before it, opens soon. Asked once a process."""
    there = urlsplit(address)
    proxy = None if proxy_bypass(there.hostname or "") else getproxies().get(there.scheme)
    if proxy:
        there = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    opened = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a port that is none
            port = there.port or (443 if there.scheme == "https" else 80)
            socket.create_connection((there.hostname or "", port), REACHED_WITHIN_S).close()
            opened.set()

    asking = threading.Thread(target=connect, daemon=True)  # a look-up of a name has no time limit
    asking.start()
    asking.join(REACHED_WITHIN_S)
    return opened.is_set()


def stay_offline(why: str, print_line: PrintLine) -> None:
    """Write the runs of this process, and of those that it starts, to the disk, and print a line about it."""
    os.environ[MODE] = "offline"
    print_line(f"tracking: {why}, so wandb's runs are offline; `wandb sync` sends them later")


def logged_in() -> bool:
    """Return whether this machine has a key of wandb's."""
    try:
        return netrc().authenticators(urlsplit(server()).hostname or "") is not None
    except (OSError, NetrcParseError):
        return False


def harmless(function: Callable[P, Any]) -> Callable[P, Any]:
    """Return the function, with whatever it raises turned into a line in the log: tracking is not worth a run."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # whatever a service and its client can raise
            log.warning("tracking: %s: %s", type(error).__name__, " ".join(str(error).split())[:200])
            return None

    return guarded


def tracker(config: Config, folder: Path, print_line: PrintLine = print) -> Tracker:
    """Return what the executor wraps around a stage's computation. print_line: takes a line for people."""
    if mode(config) == "off":
        return no_tracker
    if mode(config) == "online" and not is_reachable(server()):
        stay_offline(f"{server()} cannot be reached", print_line)

    @contextlib.contextmanager
    def track(job: Job) -> Iterator[None]:
        stage = job.stage
        run = start(config, folder, str(stage), stage.kind, about(stage), print_line) if stage.type.tracked else None
        if run is None:
            yield
            return
        emit, send = job.emit, harmless(lambda record: run.log(record))

        def emit_and_send(event: str, **fields: Any) -> None:
            emit(event, **fields)
            if event == "log":
                send(fields)

        job.emit = emit_and_send
        try:
            yield
        except BaseException:
            harmless(lambda: run.finish(exit_code=1))()
            raise
        harmless(lambda: run.summary.update({**scores(job.out), **performance(job)}))()
        harmless(lambda: run.finish())()

    return track


def about(stage: Stage) -> dict[str, Any]:
    """Return what a run's config records of its stage, and the method of the results to which it belongs."""
    return {
        "stage": stage.key_content,
        "options": stage.options.model_dump(mode="json", exclude_defaults=True),
        "method": stage.method,
        **cell_of(stage),
    }


@harmless
def start(
    config: Config, folder: Path, name: str, job_type: str, described: dict[str, Any], print_line: PrintLine = print
) -> Any:
    """Return a wandb run, or None if there can be none."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    folder.mkdir(parents=True, exist_ok=True)
    online = mode(config) == "online"
    quiet = wandb.Settings(
        silent=True,
        console="off",
        # A CPU's utilisation is of no use, and its sampling takes time from the trainings on the same cores.
        x_disable_stats=not (online and config.compute.device == "cuda"),
        x_disable_meta=True,
        x_save_requirements=False,
        disable_git=True,
        init_timeout=STARTED_WITHIN_S,
    )
    about: dict[str, Any] = {
        "project": config.tracking.project,
        "group": config.name,
        "name": name,
        "job_type": job_type,
        "dir": str(folder),
        "config": {"language": config.language.code, **described},
        "settings": quiet,
        "reinit": "finish_previous",
    }
    if mode(config) == "online":
        try:
            return wandb.init(mode="online", **about)
        except Exception as error:  # whatever a service and its client can raise
            stay_offline(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", print_line)
    return wandb.init(mode="offline", **about)


def cell_of(stage: Stage) -> dict[str, Any]:
    """Return the budget and the seed of a stage: its own, or those of the CT that it comes from; null where none is."""
    cell = {
        "ct_tokens": stage.tokens if stage.kind == "ct" else None,
        "seed": getattr(stage.settings, "seed", None),
    }
    for parent in map(cell_of, stage.parents.values()):
        cell = {name: value if value is not None else parent[name] for name, value in cell.items()}
    return cell


def performance(job: Job) -> dict[str, Any]:
    """Return the measurements of a stage's training, by name; empty for a stage that does not train."""
    return {f"performance/{name}": value for name, value in job.facts.get("performance", {}).items()}


def scores(out: Path) -> dict[str, float]:
    """Return the scores that an evaluation left, by task and metric."""
    path = out / "scores.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    return {f"{row['task']}/{row['metric']}": row["value"] for row in rows}


@harmless
def report(config: Config, results_csv: Path, curves: Path | None, page: Path) -> None:
    """Write a last run with the results table, the curves if there are some, and the page."""
    if mode(config) == "off":
        return
    run = start(config, results_csv.parent.absolute(), "report", "report", {})
    if run is None:
        return
    import pandas
    import wandb

    drawn = {"curves": wandb.Image(str(curves))} if curves else {}
    run.log({"results": wandb.Table(dataframe=pandas.read_csv(results_csv)), **drawn})
    run.save(str(page), base_path=str(page.parent), policy="now")
    run.finish()
