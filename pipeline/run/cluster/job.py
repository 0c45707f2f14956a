"""What runs inside a Slurm job: its own stages, and nothing else. It never waits for another job's work.

`python -m pipeline.run.cluster.job FOLDER NAME SETTLE_SECONDS KEY...` is a process of several in a job.

Slurm's warning (USR2, before a time limit or a preemption) reaches this process. A training runs in a child: it is
asked to save, and the job is queued again; it resumes from there. Scoring starts over, tuning resumes from its last
try.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from common.errors import Interrupted
from pipeline.journal import Journal
from pipeline.run import launch
from pipeline.run.cells import run_executor
from pipeline.run.cluster.schedule import group_into_pieces
from pipeline.run.display import RunView, shown
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

KILLED_WITHIN_S = 900.0  # seconds after which a job that was asked to end stops waiting for Slurm to end it


@dataclass(frozen=True)
class ClusterJob:
    """A job as submitit keeps it: the folder of the run's plan, and the keys of its stages, in their order."""

    folder: Path
    name: str
    keys: tuple[str, ...]
    settle_seconds: float
    at_a_time: int = 1  # independent stages are computed in that many processes, each on its own GPU
    python: str | None = None  # the site's command that starts Python on a host; None: by the path of the one that runs

    @property
    def journal(self) -> Journal:
        """The job's own journal: several machines that append to one file may lose lines on a network file system."""
        return Journal(self.folder / f"{self.name}.jsonl")

    def __call__(self) -> None:
        os.environ[launch.AS_CHILD] = "1"  # trainings run in a child: submitit owns the signals of this process
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # srun does not take it over from the job, since Slurm 22.05
            os.environ.setdefault("SRUN_CPUS_PER_TASK", cpus)
        if self.python:
            os.environ[launch.PYTHON] = self.python
        bind_gpus()
        events, plan = self.journal, RunPlan.load(self.folder)
        events.write("job", job=_job_id(), host=socket.gethostname())
        view = RunView(plan, events.path, [plan.by_key[key] for key in self.keys])
        view.new_lines()  # of the job before it was queued again
        chains = group_into_pieces(plan.stages, self.keys)
        try:
            with shown(view):
                if min(self.at_a_time, len(chains)) > 1:
                    self._compute_side_by_side([chain.stages for chain in chains])
                else:
                    self.compute(plan)
        except Interrupted:
            # Slurm ended the training itself, without the warning: it decides whether to requeue or cancel.
            time.sleep(KILLED_WITHIN_S)

    def compute(self, plan: RunPlan) -> None:
        """Compute its stages in this process."""
        executor = run_executor(plan, self.journal, assigned=self.keys, settle_seconds=self.settle_seconds)
        executor.compute([plan.by_key[key] for key in self.keys])

    def _compute_side_by_side(self, chains: Sequence[Sequence[Stage]]) -> None:
        """Compute each chain in a process of its own, bound to one of the GPUs that Slurm gave to the job, if it gave
        any.
        """
        devices: SimpleQueue[str] = SimpleQueue()
        given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        for index in range(self.at_a_time):
            devices.put(given[index % len(given)] if given else "")

        def process(chain: Sequence[Stage]) -> None:
            device = devices.get()
            words = [str(self.folder), self.name, str(self.settle_seconds), *(stage.key for stage in chain)]
            bound = {**os.environ, "CUDA_VISIBLE_DEVICES": device} if device else dict(os.environ)
            subprocess.run(
                [sys.executable, "-m", "pipeline.run.cluster.job", *words], check=False, env=bound
            )  # the journal has the outcome
            devices.put(device)

        with ThreadPoolExecutor(self.at_a_time) as pool:
            list(pool.map(process, chains))

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit on the warning: returns when a running training has saved, and the job can be queued
        again.
        """
        from submitit.helpers import DelayedSubmission

        launch.interrupt(signal.SIGUSR2)
        self.journal.write("requeued", job=_job_id())
        return DelayedSubmission(self)


def bind_gpus() -> None:
    """Set CUDA_VISIBLE_DEVICES to the GPUs that Slurm gave to the job, if Slurm has not set it itself.

    Without it, all jobs of a node whose cgroups do not confine GPUs (ConstrainDevices) use the first GPU. Not for a job
    of several nodes: Slurm names those of the first node only.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ or os.environ.get("SLURM_JOB_NUM_NODES", "1") != "1":
        return
    given = (os.environ.get(name) for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "GPU_DEVICE_ORDINAL"))
    if devices := next(filter(None, given), None):
        os.environ["CUDA_VISIBLE_DEVICES"] = devices


def _job_id() -> str:
    from submitit import JobEnvironment

    return JobEnvironment().job_id


if __name__ == "__main__":
    folder, name, settle, *keys = sys.argv[1:]
    ClusterJob(Path(folder), name, tuple(keys), float(settle)).compute(RunPlan.load(Path(folder)))
