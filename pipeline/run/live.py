"""The progress of a run, from its journal and the store: below the lines of `run` on a terminal, and by `slackmerge
watch [FOLDER]`, for a run on this machine or in Slurm jobs.

`run` shows numbers alone. `watch` also draws the page again as cells are scored, marked as unfinished: that costs the
run no time.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import BadInput
from common.units import duration
from pipeline.journal import Journal
from pipeline.run.console import SAY_TO, Estimates, amount
from pipeline.run.worker import JOURNAL
from pipeline.run_plan import FILE, RunPlan
from pipeline.stages.stage import Stage

if TYPE_CHECKING:
    from rich.live import Live

LOOK_EVERY_S = 2.0
DRAW_EVERY_S = 60.0
ENDED = ("published", "failed", "refused", "not_run", "preempted")
SAID = "said.log"  # in the run's folder: the lines of its processes while a display uses the terminal


@dataclass(frozen=True)
class Running:
    """A stage that is running. said: its progress, or empty."""

    stage: Stage
    seconds: float
    expected: float
    said: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.said or f'runs for {duration(self.seconds)} of about {duration(self.expected)}'}"


@dataclass(frozen=True)
class Standing:
    """The status of a run. lost: messages of failed stages."""

    done: int
    total: int
    running: Sequence[Running]
    by_kind: Mapping[str, tuple[int, int]]
    lost: Sequence[str]
    seconds_left: float

    @property
    def over(self) -> bool:
        """Return whether nothing more will come: all is done, or something failed and nothing runs."""
        return self.done == self.total or (bool(self.lost) and not self.running)


def newest(outputs: Path) -> Path:
    """Return the folder of an experiment's newest run that makes something. Raises BadInput if there is none."""
    runs = [*outputs.glob(f"runs/*/{FILE}"), *outputs.glob(f"*/runs/*/{FILE}")]
    if not runs:
        raise BadInput(f"{outputs}: contains no plan of a run. Pass outputs/<experiment>, or outputs.")
    return max(runs, key=lambda path: path.parent.name).parent


def standing(plan: RunPlan, journal: Journal) -> Standing:
    """Return the status by the store and the journal."""
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
    under_way = [(plan.by_key[key], since) for key, since in running.items() if key in plan.by_key and key not in done]
    return Standing(
        len(done),
        len(plan.stages),
        [
            Running(stage, time.time() - since, amount(stage) * estimates.rate(stage.kind), journal.noted(stage))
            for stage, since in under_way
        ],
        {kind: (made[kind], count) for kind, count in kinds.items()},
        list(lost.values()),
        estimates.of(plan.stages),
    )


def lines(now: Standing, name: str) -> list[str]:
    """Return the standing in words, for a terminal or none. `name`: of the experiment."""
    left = f", about {duration(now.seconds_left)} left" if now.done < now.total else ""
    kinds = ", ".join(f"{kind} {made}/{count}" for kind, (made, count) in now.by_kind.items())
    told = [f"{name}: {now.done} of {now.total} stages done{left}", f"  {kinds}"]
    return [*told, *(f"  {stage}" for stage in now.running), *(f"  {message}" for message in now.lost)]


def curve(plan: RunPlan) -> str:
    """Return the results so far as numbers: methods by budgets, one table per report. Empty where nothing is scored."""
    from pipeline.report.data import gather
    from pipeline.report.records import Evaluation
    from pipeline.report.tables import terminal_table

    told = []
    for (regime, language), cells in plan.reports.items():
        scored = [
            Evaluation(method, cell.budget_of(method), cell.seed, entry.path)
            for cell in cells
            for method, stage in cell.evals.items()
            if (entry := plan.store.find(stage))
        ]
        if scored:  # what belongs to many cells is gathered once
            told += [*([regime] if regime else []), terminal_table(gather(scored), language)]
    return "\n".join(told)


@contextlib.contextmanager
def display(plan: RunPlan, journal: Journal) -> Iterator[None]:
    """While in here, a terminal shows where the run stands, below what its processes say. Without one: nothing."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield
        return
    from rich.console import Console
    from rich.live import Live

    said = journal.path.with_name(SAID)
    ended = threading.Event()
    shown = Live(console=Console(), auto_refresh=False, transient=True)
    thread = threading.Thread(target=_show, args=(shown, plan, journal, said, ended), daemon=True)
    os.environ[SAY_TO] = str(said)
    try:
        with shown:
            shown.console.show_cursor(True)  # who is killed leaves a terminal that can be used
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
    finally:
        del os.environ[SAY_TO]


def _show(shown: Live, plan: RunPlan, journal: Journal, said: Path, ended: threading.Event) -> None:
    """Refresh the display until the run has ended, and print messages above it."""
    from rich.console import Group
    from rich.text import Text

    printed, scored, table = 0, 0, ""
    looks = chain([0.0], repeat(LOOK_EVERY_S))
    while True:
        last = ended.wait(next(looks))
        if said.exists():
            with said.open("rb") as file:
                file.seek(printed)
                new = file.read()
            printed += len(new)
            for line in new.decode(errors="replace").splitlines():
                shown.console.print(Text(line), soft_wrap=True)
        if last:
            return
        with contextlib.suppress(OSError, ValueError):  # a file that is just being written: the next look reads it
            now = standing(plan, journal)
            evals = now.by_kind.get("eval", (0, 0))[0]
            if evals != scored:
                table, scored = curve(plan), evals
            words, numbers = (
                Text("\n".join(lines(now, plan.config.name))),
                Text(table, no_wrap=True, overflow="ellipsis"),
            )
            shown.update(Group(words, numbers) if table else words, refresh=True)


def watch(outputs: Path) -> int:
    """Show the newest run until it is over: one display on a terminal, else lines when they change. Exit code."""
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
            if evals != scored and evals and (now.over or time.monotonic() - drawn_at > DRAW_EVERY_S):
                if not now.over:  # the last page is the run's own
                    _draw(plan, journal)
                table, scored, drawn_at = curve(plan), evals, time.monotonic()
            text = "\n".join([*lines(now, plan.config.name), *([table] if table else [])])
            if text != said and shown:
                shown.update(Text(text), refresh=True)
            elif text != said:
                print(text, flush=True)
            said = text
            if now.over:
                return 1 if now.lost else 0
            time.sleep(LOOK_EVERY_S)


def _draw(plan: RunPlan, journal: Journal) -> None:
    """Draw the report over what is done."""
    from pipeline.run.collect import write_report

    with contextlib.redirect_stdout(io.StringIO()):  # the display is one
        write_report(plan, plan.arguments)
        if standing(plan, journal).over:  # ended since: its last page may be below this one
            write_report(plan, plan.arguments)
