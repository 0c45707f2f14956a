"""What runs inside a Slurm job: its own stages, and nothing else. It never waits for another job's work.

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
from pipeline.run.cluster.schedule import cut
from pipeline.run.console import SAY_TO
from pipeline.run.worker import worker
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

KILLED_WITHIN_S = 900.0  # seconds after which a job that was asked to end stops waiting for Slurm to end it


@dataclass(frozen=True)
class ClusterJob:
    """A job as submitit keeps it: where the run's plan lies, and the keys of its own stages, in their order."""

    folder: Path
    name: str
    keys: tuple[str, ...]
    settle_seconds: float
    at_a_time: int = 1  # independent stages are computed in that many processes, each on its own GPU
    python: str | None = None  # the site's command that starts Python on a host; None: by the path of the one that runs

    @property
    def journal(self) -> Journal:
        """Return each job has a journal of its own: several machines that append to one file may lose lines on a
        network file system.
        """
        return Journal(self.folder / f"{self.name}.jsonl")

    def __call__(self) -> None:
        os.environ.pop(SAY_TO, None)  # of the command that submitted it, whose environment Slurm passes on
        os.environ[launch.AS_CHILD] = "1"  # trainings run in a child: submitit owns the signals of this process
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # srun does not take it over from the job, since Slurm 22.05
            os.environ.setdefault("SRUN_CPUS_PER_TASK", cpus)
        if self.python:
            os.environ[launch.PYTHON] = self.python
        bind_gpus()
        self.journal.write("job", job=_job_id(), host=socket.gethostname())
        chains = cut(RunPlan.load(self.folder).stages, self.keys)
        if min(self.at_a_time, len(chains)) > 1:
            self._side_by_side([chain.stages for chain in chains])
            return
        try:
            self.make()
        except Interrupted:
            # Slurm ended the training itself, without the warning: it decides whether to requeue or cancel.
            time.sleep(KILLED_WITHIN_S)

    def make(self) -> None:
        """Make its stages in this process."""
        plan = RunPlan.load(self.folder)
        maker = worker(plan, self.journal, assigned=self.keys, settle_seconds=self.settle_seconds)
        maker.make([plan.by_key[key] for key in self.keys])

    def _side_by_side(self, chains: Sequence[Sequence[Stage]]) -> None:
        """Make each chain in a process of its own, bound to one of the GPUs that Slurm gave to the job, if it gave
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
                [sys.executable, "-m", "pipeline.run.cluster", *words], check=False, env=bound
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
    """Set CUDA_VISIBLE_DEVICES from what Slurm says of the job's GPUs, if Slurm has not set it itself.

    Without it, all jobs of a node whose cgroups do not confine GPUs (ConstrainDevices) use the first GPU. Not for a job
    of several nodes: Slurm says so of the first node only.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ or os.environ.get("SLURM_JOB_NUM_NODES", "1") != "1":
        return
    given = (os.environ.get(name) for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "GPU_DEVICE_ORDINAL"))
    if devices := next(filter(None, given), None):
        os.environ["CUDA_VISIBLE_DEVICES"] = devices


def _job_id() -> str:
    from submitit import JobEnvironment

    return JobEnvironment().job_id
