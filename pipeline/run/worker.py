"""The worker that computes stages: in this process, in a process of Hydra's launcher and in a Slurm job.

It reads the run's plan, computes its stages, first those that no other process computes, and writes a journal. A failed
stage stops those that need it, and no others.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from common.errors import BadInput, Interrupted, StageFailed
from common.processes import silence
from pipeline import interruption
from pipeline.config import Config
from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.run.console import say
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage
from pipeline.store import Entry
from pipeline.tracking import tracker

JOURNAL, LOG = "journal.jsonl", "messages.log"


class NotRun(RuntimeError):
    """A stage that this worker cannot compute. The text is one line with the reason."""


class Worker(Executor):
    """An executor that continues after a failure.

    `assigned`: the keys that it may compute, without waiting for others' work, unless `waits`.

    None: all; it waits for what another process computes once there is nothing else to do.
    """

    def __init__(
        self,
        *args: Any,
        assigned: Collection[str] | None = None,
        settle_seconds: float = 0.0,
        waits: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(*args, **more)
        self.assigned, self.settle_seconds, self.waits = assigned, settle_seconds, waits
        self.given_up: set[str] = set()  # keys of what failed or could not be run here

    def make(self, stages: Sequence[Stage]) -> None:
        """Make what is missing of these, and before a budget, where it may, the smaller ones of the sweep.

        Failures are reported on the console and in the journal. Raises Interrupted.
        """
        wanted = self.with_prerequisites(stages) if self.assigned is None else stages
        waiting = [stage for stage in wanted if stage.key not in self.given_up]
        while waiting:
            if interruption.requested():  # and what was to save has failed to
                raise KeyboardInterrupt
            stage = self.choose(waiting)
            waiting.remove(stage)
            try:
                if missing := self.absent(stage):
                    raise NotRun(f"{stage} was not run, as {missing} is missing")
                self.ensure(stage)
            except NotRun as why:
                self.journal.write("not_run", stage, message=str(why))
                self.progress.say(stage, f"not run: {why}")
                self.given_up.add(stage.key)
            except (StageFailed, BadInput) as error:
                self.progress.say(stage, str(error))
                self.given_up.add(stage.key)

    def absent(self, stage: Stage) -> Stage | None:
        """Return the first thing that a stage reads and that is not there, or None.

        A shared file system may show it late.
        """
        needed = [parent for parent in stage.parents.values() if not parent.given] + self.smaller_in_sweep(stage)
        others = [parent for parent in needed if self.assigned is not None and parent.key not in self.assigned]
        self._within_settling(lambda: all(self.store.find(parent) for parent in others))
        return next((parent for parent in needed if self.store.find(parent) is None), None)

    def on_wait(self, stage: Stage) -> None:
        """Another process holds the claim: shortly, if it was just killed or tidies up; longer is its work."""
        if self.assigned is None or self.waits:
            super().on_wait(stage)
        elif not self._within_settling(lambda: self.store.is_free(stage)):
            raise NotRun(f"another job computes {stage} at this moment")

    def _make(self, stage: Stage) -> Entry:
        if self.assigned is None:
            # the run's processes write one journal: what failed in one of them is not tried again
            for event in self.journal.events("failed", "refused"):
                if event["key"] == stage.key:
                    raise StageFailed(event["message"])
        elif stage.key not in self.assigned:
            raise NotRun(f"{stage} was damaged and was moved away; the next run recomputes it")
        return super()._make(stage)

    def _within_settling(self, holds: Callable[[], bool]) -> bool:
        until = time.monotonic() + self.settle_seconds
        while not holds():
            if time.monotonic() >= until:
                return False
            time.sleep(0.5)
        return True


def worker(
    plan: RunPlan,
    journal: Journal,
    config: Config | None = None,
    assigned: Collection[str] | None = None,
    settle_seconds: float = 0.0,
    waits: bool = False,
) -> Worker:
    """Return a worker of a run, whose libraries are quiet. `config`: of the cell that it makes, if it makes one."""
    folder = journal.path.parent
    config = config or plan.config
    quiet(config, folder / LOG)
    return Worker(
        plan.store,
        plan.stages,
        journal,
        first_guess=config.compute.first_guess,
        jobs=plan.processes,
        say=say,
        track=tracker(config, folder.parents[1]),
        assigned=assigned,
        settle_seconds=settle_seconds,
        waits=waits,
    )


def make_cell(folder: Path, number: int) -> None:
    """Make a cell of the run in this folder; then what is left of the others, rather than stand idle beside them."""
    plan = RunPlan.load(folder)
    cell, journal = plan.cells[number], Journal(folder / JOURNAL)
    maker = worker(plan, journal, cell.config)
    try:
        maker.make(cell.stages)
        if plan.processes > 1:
            maker.given_up |= {event["key"] for event in journal.events("failed", "refused", "not_run")}
            maker.make(plan.stages)
    except Interrupted as stopped:
        say(f"cell {cell} stops: {stopped}")


def quiet(config: Config, log: Path) -> None:
    """Silence libraries on the console: their warnings go to a file.

    Call this before they are imported; child processes inherit it.
    """
    silence()
    if config.compute.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not logging.root.handlers:
        handler = logging.FileHandler(log, encoding="utf-8", delay=True)
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
