"""What a run shows: lines about its stages, and on a terminal its status below them.

All of it is made from the run's journal and the store, so that it is the same for stages of this process, of a
launcher's processes and of Slurm jobs. `run` and `make` show it while they compute; `slackmerge watch [FOLDER]` shows
the status of a run of another command, and draws its page again as cells are scored.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.units import duration
from pipeline import journal
from pipeline.execute import amount
from pipeline.journal import Journal
from pipeline.run_plan import FILE, RunPlan
from pipeline.stages.stage import Stage, StageType
from pipeline.stages.trajectory import previous_stages, tokens_of
from pipeline.store import Store

if TYPE_CHECKING:
    from rich.live import Live

LINES_EVERY_S = 0.2
STATUS_EVERY_S = 2.0
DRAW_EVERY_S = 60.0  # seconds between two pages that `watch` draws
IN_STATUS = ("started", "progress")  # events that need no line where the status is shown


def print_line(line: str) -> None:
    """Print a line at once: other processes write to the console too."""
    print(line, flush=True)


class Estimates:
    """Seconds that stages will take: by the last entries of their kind in the store, or else by the config.

    stage_seconds: of the config, by kind. processes: how many share the work.
    """

    def __init__(self, store: Store, stage_seconds: Mapping[str, float], processes: int = 1) -> None:
        self.store, self.stage_seconds, self.processes = store, stage_seconds, processes
        self._rates: dict[str, float] = {}

    @staticmethod
    def of_plan(plan: RunPlan) -> Estimates:
        return Estimates(plan.store, plan.config.compute.stage_seconds, plan.processes)

    def rate(self, stage_type: StageType) -> float:
        """Return the seconds for an `amount` of 1."""
        kind = stage_type.name
        if kind not in self._rates:
            records = sorted(
                (entry.record for entry in self.store.entries(kind) if entry.record),
                key=lambda record: record["finished"],
            )[-5:]
            seconds, work = sum(record["seconds"] for record in records), sum(record["amount"] for record in records)
            self._rates[kind] = seconds / work if work else self.stage_seconds.get(kind, stage_type.seconds)
        return self._rates[kind]

    def forget(self, kind: str) -> None:
        """Measure the rate of a kind again when it is next needed: a stage of it has ended."""
        self._rates.pop(kind, None)

    def total(self, stages: Sequence[Stage]) -> float:
        """Return the seconds for all of these stages that are not published."""
        resumed = {key: tokens_of(before) for key, before in previous_stages(stages).items()}
        missing = [stage for stage in stages if self.store.find(stage) is None]
        work = ((stage.type, amount(stage, resumed.get(stage.key, 0))) for stage in missing)
        return sum(each * self.rate(kind) for kind, each in work) / self.processes


@dataclass(frozen=True)
class RunStatus:
    """How far a run is. running: a line per stage. by_kind: (finished, all). failures: messages."""

    name: str
    done: int
    total: int
    running: Sequence[str]
    by_kind: Mapping[str, tuple[int, int]]
    failures: Sequence[str]
    seconds_left: float

    @property
    def finished(self) -> bool:
        """Return whether nothing more will come: all is done, or something failed and nothing runs."""
        return self.done == self.total or (bool(self.failures) and not self.running)

    @property
    def scored(self) -> int:
        """Return the number of checkpoints that are scored."""
        return self.by_kind.get("eval", (0, 0))[0]

    def __str__(self) -> str:
        left = f", about {duration(self.seconds_left)} left" if self.done < self.total else ""
        kinds = ", ".join(f"{kind} {done}/{count}" for kind, (done, count) in self.by_kind.items())
        details = [kinds, *self.running, *self.failures]
        return "\n  ".join([f"{self.name}: {self.done} of {self.total} stages done{left}", *details])


class RunView:
    """What is known of a run, from the events of its journal. stages: those that count; None: all of the plan."""

    def __init__(self, plan: RunPlan, journal: Path, stages: Sequence[Stage] | None = None) -> None:
        self.plan, self.store = plan, plan.store
        self.stages = {stage.key: stage for stage in (plan.stages if stages is None else stages)}
        self.estimates = Estimates.of_plan(plan)
        self._journal = Journal(journal)
        self._finished = {key for key, stage in self.stages.items() if self.store.find(stage)}
        self._running: dict[str, dict[str, Any]] = {}  # events by key: that it started, or its last progress
        self._started: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._unshown: list[tuple[str, str]] = []  # events and their lines

    def new_lines(self, with_status: bool = False) -> list[str]:
        """Return the lines of events since the last call. with_status: without those that the status shows."""
        self._read()
        lines = [line for event, line in self._unshown if not (with_status and event in IN_STATUS)]
        self._unshown.clear()
        return lines

    def _read(self) -> None:
        """Take in the new events of the journal."""
        for event in self._journal.new_events():
            if line := self._apply(event):
                self._unshown.append((event["event"], line))

    def _apply(self, event: Mapping[str, Any]) -> str | None:
        """Take in an event and return a line about it, behind how many stages are finished."""
        name, stage = event["event"], self.stages.get(event.get("key", ""))
        if stage is None:
            return event["text"] if name == "message" and "key" not in event else None
        if name in ("started", "progress"):
            self._running[stage.key] = dict(event)
        if name == "started":
            self._started[stage.key] = event["time"]
            self._failures.pop(stage.key, None)
        elif name == "published":
            self._finished.add(stage.key)
            self.estimates.forget(stage.kind)
        elif name in journal.FAILURES and name != "preempted" and stage.key not in self._finished:
            self._failures[stage.key] = event["message"]
        if name == "published" or name in journal.FAILURES:
            self._running.pop(stage.key, None)
        if (text := self._event_in_words(event, stage)) is None:
            return None
        return f"[{len(self._finished):{len(str(len(self.stages)))}}/{len(self.stages)}] {stage}: {text}"

    def _event_in_words(self, event: Mapping[str, Any], stage: Stage) -> str | None:
        match event["event"]:
            case "started":
                seconds = amount(stage, event["resumed_tokens"]) * self.estimates.rate(stage.type)
                left = max(seconds, self.estimates.total(list(self.stages.values())))
                where = f" in job {event['job']}" if "job" in event else ""
                return f"starts{where}, about {duration(seconds)}; all in all about {duration(left)} left"
            case "progress":
                return self._progress(event)
            case "published":
                return f"done in {event['seconds']:.1f} s{event.get('note', '')}"
            case "damaged":
                return f"damaged ({event['damage']}); moved to {event['moved_to']} and computed again"
            case "waiting":
                return "waits for another job that is making it"
            case "saving":
                return "saves and ends; a second Ctrl-C ends it at once"
            case "message":
                return str(event["text"])
        return event["message"] if event["event"] in journal.FAILURES else None

    def _progress(self, event: Mapping[str, Any]) -> str:
        fraction, elapsed = event["fraction"], event["time"] - self._started.get(event["key"], event["time"])
        return f"{fraction:.0%}, {event['text']}, about {duration(elapsed * (1 - fraction) / fraction)} left"

    def status(self) -> RunStatus:
        """Return the status by the store, which other commands change too, and the journal."""
        self._read()
        done = {key for key, stage in self.stages.items() if self.store.find(stage)}
        counts = Counter(stage.kind for stage in self.stages.values())
        finished = Counter(self.stages[key].kind for key in done)
        return RunStatus(
            self.plan.config.name,
            len(done),
            len(self.stages),
            [self._running_line(key) for key in self._running if key not in done],
            {kind: (finished[kind], count) for kind, count in counts.items()},
            [message for key, message in self._failures.items() if key not in done],
            self.estimates.total(list(self.stages.values())),
        )

    def _running_line(self, key: str) -> str:
        stage, event = self.stages[key], self._running[key]
        if event["event"] == "progress":
            return f"{stage}: {self._progress(event)}"
        expected = amount(stage, event["resumed_tokens"]) * self.estimates.rate(stage.type)
        return f"{stage}: runs for {duration(time.time() - event['time'])} of about {duration(expected)}"


# --- while a command computes


@contextlib.contextmanager
def shown(view: RunView) -> Iterator[None]:
    """Print the lines of a run while the block computes; on a terminal, show its status below them."""
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        live = None
        if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            from rich.console import Console
            from rich.live import Live

            live = stack.enter_context(Live(console=Console(), auto_refresh=False, transient=True))
            live.console.show_cursor(True)  # a process that is killed leaves a terminal that can be used
        thread = threading.Thread(target=_show, args=(view, live, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _show(view: RunView, live: Live | None, ended: threading.Event) -> None:
    """Print new lines and refresh the status until the block of `shown` has ended."""
    refreshed, table, last = 0.0, ResultsTable(view.plan), False
    while not last:
        last = ended.wait(LINES_EVERY_S)
        # a closed terminal (`slackmerge run | head`) or a file that is being written does not end the run
        with contextlib.suppress(OSError, ValueError):
            for line in view.new_lines(with_status=live is not None):
                if live is None:
                    print_line(line)
                else:
                    live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            if live is not None and not last and time.monotonic() - refreshed > STATUS_EVERY_S:
                refreshed = time.monotonic()
                _refresh(live, view.status(), table)


def _refresh(live: Live, status: RunStatus, table: ResultsTable) -> None:
    from rich.console import Group
    from rich.text import Text

    words, numbers = Text(str(status)), table.at(status)
    shown = Group(words, Text(numbers, no_wrap=True, overflow="ellipsis")) if numbers else words
    live.update(shown, refresh=True)


class ResultsTable:
    """The results of a run so far: methods by budgets, a table per report. Made again when more is scored."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan, self._scored, self._text = plan, 0, ""

    def at(self, status: RunStatus) -> str:
        """Return the tables; empty if nothing is scored."""
        if status.scored != self._scored:
            self._text, self._scored = results_in_words(self.plan), status.scored
        return self._text


def results_in_words(plan: RunPlan) -> str:
    """Return the results so far as numbers: methods by budgets, one table per report. Empty if nothing is scored."""
    from pipeline.report.data import gather
    from pipeline.report.records import Evaluation
    from pipeline.report.tables import terminal_table

    tables = []
    for (regime, language), cells in plan.reports.items():
        scored = [
            Evaluation(method, cell.budget_of(method), cell.seed, entry.path)
            for cell in cells
            for method, stage in cell.evals.items()
            if (entry := plan.store.find(stage))
        ]
        if scored:  # what belongs to many cells is gathered once
            tables += [*([regime] if regime else []), terminal_table(gather(scored), language)]
    return "\n".join(tables)


# --- `slackmerge watch`


def newest_run(outputs: Path) -> Path:
    """Return the folder of an experiment's newest run that computes something. Raises BadInput if there is none."""
    runs = [*outputs.glob(f"runs/*/{FILE}"), *outputs.glob(f"*/runs/*/{FILE}")]
    if not runs:
        raise BadInput(f"{outputs}: contains no plan of a run. Pass outputs/<experiment>, or outputs.")
    return max(runs, key=lambda path: path.parent.name).parent


def watch(outputs: Path) -> int:
    """Show the newest run until it has finished: one display on a terminal, else lines when they change. Exit code."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    folder = newest_run(outputs)
    plan = RunPlan.load(folder)
    view, table = RunView(plan, folder / journal.FILE), ResultsTable(plan)
    console = Console()
    scored, drawn_at, printed = -1, 0.0, ""
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or contextlib.nullcontext():
        while True:
            status = view.status()
            if status.scored not in (0, scored) and (status.finished or time.monotonic() - drawn_at > DRAW_EVERY_S):
                if not status.finished:  # the last page is the run's own
                    _draw(view)
                scored, drawn_at = status.scored, time.monotonic()
            results = table.at(status) if scored > 0 else ""
            text = "\n".join([str(status), *([results] if results else [])])
            if text != printed and live:
                live.update(Text(text), refresh=True)
            elif text != printed:
                print_line(text)
            printed = text
            if status.finished:
                return 1 if status.failures else 0
            time.sleep(STATUS_EVERY_S)


def _draw(view: RunView) -> None:
    """Draw the report from what is finished."""
    from pipeline.run.collect import write_report

    with contextlib.redirect_stdout(io.StringIO()):  # the display is one
        write_report(view.plan, view.plan.arguments)
        if view.status().finished:  # ended since: its last page may be below this one
            write_report(view.plan, view.plan.arguments)
