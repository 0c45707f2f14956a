"""The GPUs that this process may use, and whether the run shares them among child processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from common.errors import BadInput
from pipeline.run.gpus.pool import width
from pipeline.sweep import GPUS, IN_THIS_PROCESS, Sweep

if TYPE_CHECKING:
    from pipeline.config import Compute
    from pipeline.run.cluster.schedule import Task

VISIBLE = "CUDA_VISIBLE_DEVICES"
MIG = "MIG-"  # how CUDA_VISIBLE_DEVICES names a slice of a GPU


def visible() -> tuple[str, ...]:
    """Name the GPUs of this process, as CUDA_VISIBLE_DEVICES takes them. Imports torch."""
    import torch

    given = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    if given and given[0].startswith(MIG):  # CUDA shows a process only the first slice; each child gets its own
        return tuple(dict.fromkeys(name for name in given if name.startswith(MIG)))
    count = torch.cuda.device_count()
    return tuple(given[:count]) if given else tuple(map(str, range(count)))


def choose(sweep: Sweep, compute: Compute) -> tuple[Sweep, tuple[str, ...]]:
    """Choose how this machine makes the stages: the sweep with its launcher, and the GPUs that children share.

    No GPUs are returned if the stages are made as `launcher` says, without sharing. Several visible GPUs are shared
    unless the command line names a launcher. Raises BadInput.
    """
    cuda = compute.device == "cuda"
    if sweep.launcher == GPUS and not cuda:
        raise BadInput(
            f"launcher={GPUS}: needs GPUs, got compute.device={compute.device}. "
            "Set compute=gpu, or launcher=joblib for several processes on the CPU."
        )
    if not cuda:
        return sweep, ()
    devices = visible()
    if sweep.launcher != GPUS and len(devices) > 1:
        if sweep.launcher != IN_THIS_PROCESS and sweep.launcher_given:
            raise BadInput(
                f"launcher={sweep.launcher}: all of its processes would use the first of {len(devices)} GPUs. "
                f"Set launcher={GPUS} to use all of them."
            )
        if not sweep.launcher_given and compute.nodes == 1:
            sweep = replace(sweep, launcher=GPUS)
    if sweep.launcher != GPUS:
        return sweep, ()
    if compute.nodes > 1:
        raise BadInput(
            f"compute.nodes={compute.nodes}: launcher={GPUS} uses one machine. "
            "Set compute.nodes=1, or launcher=slurm with a site."
        )
    return replace(sweep, processes=len(devices)), devices


def check(tasks: Sequence[Task], devices: Sequence[str]) -> None:
    """Raise BadInput if a piece wants more GPUs than there are."""
    widest = max(map(width, tasks), default=0)
    if widest > len(devices):
        raise BadInput(
            f"compute.processes={widest}: a training takes one GPU per process, got {len(devices)} visible GPUs. "
            f"Set compute.processes={len(devices)} or less, or make more GPUs visible ({VISIBLE})."
        )


def cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
