"""`python -m pipeline watch [FOLDER]`: a run as it goes, from its journal, on this machine or in Slurm jobs.

It looks and changes nothing but the page, which it draws anew as cells are scored, marked as unfinished: drawing costs
the run no time.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadInput
from pipeline.graph import Stage
from pipeline.run.console import Estimates, amount, duration
from pipeline.run.journal import Journal
from pipeline.run.run_plan import FILE, RunPlan
from pipeline.run.worker import JOURNAL

LOOK_EVERY_S = 2.0
DRAW_EVERY_S = 60.0
ENDED = ("published", "failed", "refused", "not_run", "preempted")


@dataclass(frozen=True)
class Standing:
    """Where a run stands. running: stages and since when, seconds of the epoch. lost: messages of what was not made."""

    done: int
    total: int
    running: Sequence[tuple[Stage, float]]
    by_kind: Mapping[str, tuple[int, int]]
    lost: Sequence[str]
    seconds_left: float

    @property
    def over(self) -> bool:
        """Whether nothing more will come: all is done, or something failed and nothing runs."""
        return self.done == self.total or (bool(self.lost) and not self.running)


def newest(outputs: Path) -> Path:
    """The folder of an experiment's newest run that makes something. Raises BadInput where there is none."""
    runs = [*outputs.glob(f"runs/*/{FILE}"), *outputs.glob(f"*/runs/*/{FILE}")]
    if not runs:
        raise BadInput(f"{outputs}: no run has left a plan here; name outputs/<experiment>, or outputs")
    return max(runs, key=lambda path: path.parent.name).parent


def standing(plan: RunPlan, journal: Journal) -> Standing:
    """What the store and the journal say now."""
    done = {stage.key for stage in plan.stages if plan.store.find(stage)}
    running: dict[str, float] = {}
    lost: dict[str, str] = {}
    for event in journal.events("started", *ENDED):
        if event["event"] == "started":
            running[event["key"]] = event["time"]
            lost.pop(event["key"], None)
        else:
            running.pop(event["key"], None)
            if event["event"] in ("failed", "refused", "not_run") and event["key"] not in done:
                lost[event["key"]] = event["message"]
    kinds = Counter(stage.kind for stage in plan.stages)
    made = Counter(stage.kind for stage in plan.stages if stage.key in done)
    estimates = Estimates(plan.store, plan.config.compute.first_guess, plan.processes)
    return Standing(
        len(done),
        len(plan.stages),
        [(plan.by_key[key], since) for key, since in running.items() if key in plan.by_key and key not in done],
        {kind: (made[kind], count) for kind, count in kinds.items()},
        list(lost.values()),
        estimates.of(plan.stages),
    )


def lines(now: Standing, plan: RunPlan) -> list[str]:
    """The standing in words, for a terminal or none."""
    left = f", about {duration(now.seconds_left)} left" if now.done < now.total else ""
    kinds = ", ".join(f"{kind} {made}/{count}" for kind, (made, count) in now.by_kind.items())
    told = [f"{plan.config.name}: {now.done} of {now.total} stages done{left}", f"  {kinds}"]
    estimates = Estimates(plan.store, plan.config.compute.first_guess)
    for stage, since in now.running:
        expected = amount(stage) * estimates.rate(stage.kind)
        told.append(f"  {stage}: runs for {duration(time.time() - since)} of about {duration(expected)}")
    return [*told, *(f"  {message}" for message in now.lost)]


def watch(outputs: Path, once: bool = False, draw: bool = True) -> int:
    """Shows the newest run until it is over: one display on a terminal, else lines when they change. Exit code."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    folder = newest(outputs)
    plan, journal = RunPlan.load(folder), Journal(folder / JOURNAL)
    console = Console()
    scored, drawn_at, said, table = -1, 0.0, "", ""
    shown = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with shown or contextlib.nullcontext():
        while True:
            now = standing(plan, journal)
            evals = now.by_kind.get("eval", (0, 0))[0]
            if draw and evals != scored and evals and time.monotonic() - drawn_at > DRAW_EVERY_S:
                table, scored, drawn_at = _draw(plan), evals, time.monotonic()
            text = "\n".join([*lines(now, plan), *([table] if table else [])])
            if text != said and shown:
                shown.update(Text(text), refresh=True)
            elif text != said:
                print(text, flush=True)
            said = text
            if once or now.over:
                return 1 if now.lost else 0
            time.sleep(LOOK_EVERY_S)


def _draw(plan: RunPlan) -> str:
    """Draws the report over what is done; the results so far, as numbers."""
    from pipeline.run.collect import write_report

    with contextlib.redirect_stdout(io.StringIO()):  # the display is one
        paths = write_report(plan, ["run"])
    return paths.table if paths else ""
