"""Refuses NaN and infinite weights before anything is written: one pass over what the parents hold, at the speed of memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from merge.checkpoint import FLOATS, Checkpoint, keep_heap
from merge.errors import BadInput
from merge.plan import Plan
from merge.select import INFINITE, magnitude_bits

CHUNK = 1 << 20  # elements


def check_finite(plan: Plan, threads: int | None = None) -> None:
    """Read every tensor that the merge will read. Raises BadInput that names file and tensor."""
    keep_heap()
    wanted = sorted({(key, name) for output in plan.outputs if output.floating for key, name in output.sources.items()}, key=str)
    with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
        checked = pool.map(lambda pair: is_finite(plan.parents[pair[0]], pair[1]), wanted)
        for (key, name), finite in zip(wanted, checked, strict=True):
            if not finite:
                pool.shutdown(cancel_futures=True)
                raise not_finite(plan.parents[key], name)


def is_finite(parent: Checkpoint, name: str) -> bool:
    """Whether a tensor holds numbers only; whole-number tensors do."""
    info = parent.tensors[name]
    if info.dtype not in FLOATS:
        return True
    for start in range(0, info.numel, CHUNK):
        values = parent.read(name, start, min(start + CHUNK, info.numel))
        if values.dtype not in INFINITE:
            if not torch.isfinite(values).all():
                return False
        elif magnitude_bits(values).max() >= INFINITE[values.dtype]:
            return False
    return True


def not_finite(parent: Checkpoint, name: str) -> BadInput:
    """The refusal, for one tensor."""
    file = parent.tensors[name].file
    return BadInput(f"{file}: tensor {name} holds NaN or infinite values; train or export that checkpoint again")
