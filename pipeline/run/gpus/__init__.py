"""All GPUs of one machine: `launcher=gpus`.

Comes in: the run's plan, the names of the visible GPUs. Goes out: entries in the store, made by child processes, and
the run's journal. `devices` names the GPUs and chooses the launcher; `pool` says which piece starts next on which of
them (pure); `children` runs the pieces as processes; `__main__` is what runs inside one. The pieces are those that
Slurm's jobs are cut into (pipeline/run/cluster/schedule.py). Side effects: the run's folder, and the store by its
workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline import interruption
from pipeline.run.gpus import devices as visible_devices
from pipeline.run.gpus.children import Children
from pipeline.run.gpus.pool import pieces
from pipeline.run.worker import Worker
from pipeline.run_plan import RunPlan

choose = visible_devices.choose


def check(plan: RunPlan, devices: Sequence[str]) -> None:
    """Raise BadInput if a training that is missing wants more GPUs than there are."""
    visible_devices.check(pieces(plan.stages, {stage.key for stage in plan.missing()}), devices)


def make(plan: RunPlan, here: Worker, folder: Path, devices: Sequence[str]) -> None:
    """Make what is missing, and return when nothing more can be made; what became of it is in the journal.

    `here`: this process's worker. `folder`: the run's, with the plan. `devices`: names as CUDA_VISIBLE_DEVICES takes
    them. A Ctrl-C lets trainings save. Raises BadInput, KeyboardInterrupt.
    """
    known: set[str] = set()
    while True:
        tried = {event["key"] for event in here.journal.events("failed", "refused")}
        keys = {stage.key for stage in plan.missing()} - tried
        with interruption.deferred():
            Children(plan, keys, here, folder, devices).make()
        # damaged entries that a reader found were moved away; another round computes them
        damaged = {event["key"] for event in here.journal.events("damaged")} - known
        known |= damaged
        if not damaged & {stage.key for stage in plan.missing()}:
            return
