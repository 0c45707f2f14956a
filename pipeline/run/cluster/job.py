"""What runs inside a Slurm job: its own stages, and nothing else. It never waits for another job's work.

Slurm's warning (USR2, before a time limit or a preemption) reaches this process. A training runs in a child: it is told to save, and the job is
queued again; it goes on from there. Scoring starts over, tuning goes on from its last try.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from common.errors import BadInput, Interrupted, StageFailed
from pipeline.config import Config
from pipeline.execute import Executor
from pipeline.plan import Stage
from pipeline.run.cluster.schedule import cut
from pipeline.run.console import Journal
from pipeline.store import Entry, Store

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

PLAN = "cluster-plan.pickle"
KILLED_WITHIN = 900.0  # seconds after which a job that was told to end gives up waiting for Slurm to end it


class NotRun(RuntimeError):
    """A stage that this job cannot make: one line that says why."""


class OwnStages(Executor):
    """Makes the stages of one job. What it reads is made by other jobs: it is there, or the stage is not run."""

    def __init__(self, *args: Any, own: Collection[str], settle_seconds: float = 0.0, **more: Any) -> None:
        super().__init__(*args, **more)
        self.own, self.settle_seconds = own, settle_seconds

    def on_wait(self, stage: Stage) -> None:
        """Another process holds the claim: a short while is a job that was just killed, or a reader that tidies up; longer is its work."""
        if not self._within_settling(lambda: self.store.is_free(stage)):
            raise NotRun(f"{stage} is being made by another job just now")

    def _make(self, stage: Stage) -> Entry:
        if stage.key not in self.own:
            raise NotRun(f"{stage} was damaged and has been moved aside; it is made anew by the next run")
        return super()._make(stage)

    def absent(self, stage: Stage) -> Stage | None:
        """The first thing that a stage reads and that is not there, or None. A shared file system may show a new file late."""
        needed = [parent for parent in stage.parents.values() if not parent.given] + self._smaller_in_sweep(stage)
        self._within_settling(lambda: all(self.store.find(one) for one in needed if one.key not in self.own))
        return next((one for one in needed if self.store.find(one) is None), None)

    def _within_settling(self, holds: Any) -> bool:
        until = time.monotonic() + self.settle_seconds
        while not holds():
            if time.monotonic() >= until:
                return False
            time.sleep(0.5)
        return True


def make(worker: OwnStages, stages: Sequence[Stage]) -> None:
    """Makes the stages in their order; one that fails takes down only those that need it. What happened stands in the journal."""
    for stage in stages:
        try:
            if missing := worker.absent(stage):
                raise NotRun(f"{stage} was not run, as there is no {missing}")
            worker.run([stage])
        except NotRun as why:
            worker.journal.write("not_run", stage, message=str(why))
            worker.progress.say(stage, f"not run: {why}")
        except (StageFailed, BadInput) as error:
            worker.progress.say(stage, str(error))


def save_plan(folder: Path, config: Config, stages: Sequence[Stage]) -> None:
    """Leaves in the run's folder what its jobs read."""
    (folder / PLAN).write_bytes(pickle.dumps((config, tuple(stages))))


@dataclass(frozen=True)
class ClusterJob:
    """A job as submitit keeps it: where the run's plan lies, and which stages are its own, in the order in which they are made."""

    folder: Path
    name: str
    keys: tuple[str, ...]
    settle_seconds: float
    at_a_time: int = 1  # what does not need one another is made in so many processes, each on a GPU of its own

    @property
    def journal(self) -> Journal:
        """Each job has a journal of its own: several machines that append to one file may lose lines on a network file system."""
        return Journal(self.folder / f"{self.name}.jsonl")

    def __call__(self) -> None:
        os.environ["SLACKMERGE_CHILD"] = "1"  # trainings run in a child: submitit owns the signals of this process
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # srun does not take it over from the job, since Slurm 22.05
            os.environ.setdefault("SRUN_CPUS_PER_TASK", cpus)
        self.journal.write("job", job=_job_id(), host=socket.gethostname())
        chains = cut(self._plan()[1], self.keys)
        if min(self.at_a_time, len(chains)) > 1:
            self._side_by_side([chain.stages for chain in chains])
            return
        try:
            self.make()
        except Interrupted:  # Slurm told the training itself to end, without the warning: what it does now, requeue or cancel, is not ours to say
            time.sleep(KILLED_WITHIN)

    def make(self) -> None:
        """Makes its stages in this process."""
        from pipeline.run.local import quiet, say
        from pipeline.tracking import tracker

        config, stages = self._plan()
        quiet(config)
        known = {stage.key: stage for stage in stages}
        worker = OwnStages(
            Store(Path(config.store)),
            stages,
            self.journal,
            first_guess=config.compute.first_guess,
            say=say,
            track=tracker(config, self.folder.parents[1]),
            own=self.keys,
            settle_seconds=self.settle_seconds,
        )
        make(worker, [known[key] for key in self.keys])

    def _side_by_side(self, chains: Sequence[Sequence[Stage]]) -> None:
        """Makes each chain in a process of its own, bound to one of the GPUs that Slurm gave to the job, if it gave any."""
        devices: SimpleQueue[str] = SimpleQueue()
        given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        for place in range(self.at_a_time):
            devices.put(given[place % len(given)] if given else "")

        def process(chain: Sequence[Stage]) -> None:
            device = devices.get()
            words = [str(self.folder), self.name, str(self.settle_seconds), *(stage.key for stage in chain)]
            bound = {**os.environ, "CUDA_VISIBLE_DEVICES": device} if device else dict(os.environ)
            subprocess.run(
                [sys.executable, "-m", "pipeline.run.cluster", *words], check=False, env=bound
            )  # the journal says what became of it
            devices.put(device)

        with ThreadPoolExecutor(self.at_a_time) as pool:
            list(pool.map(process, chains))

    def _plan(self) -> tuple[Config, tuple[Stage, ...]]:
        config, stages = pickle.loads((self.folder / PLAN).read_bytes())
        return config, stages

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit on the warning: returns when a running training has saved, and the job can be queued again."""
        from submitit.helpers import DelayedSubmission

        from pipeline.run import launch

        launch.interrupt(signal.SIGUSR2)
        self.journal.write("requeued", job=_job_id())
        return DelayedSubmission(self)


def _job_id() -> str:
    from submitit import JobEnvironment

    return JobEnvironment().job_id
