"""Streams the parents' tensors through the methods, slice by slice, for any number of recipes at once.

For each tensor: a selection pass where a recipe trims (thresholds for all densities from one histogram), a pass for scales that
need the whole tensor (l1 rescaling, slerp's angle), and the pass that merges. Slices are whole rows of about SLICE elements, so
memory does not grow with the model, and each is read once per pass however many recipes use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch

from merge.checkpoint import keep_heap
from merge.errors import BadInput
from merge.finite import is_finite, not_finite
from merge.pieces import Job, Piece
from merge.plan import Output, Parent, Plan
from merge.select import Array, NotFinite, kept, rank
from merge.tensor_recipe import Agreement, TensorRecipe

MEMORY = 1 << 29  # bytes
RESIDENT_BYTES = 5  # an element's magnitude, and a mask while ties are counted
SMALL = 1 << 23  # elements; a model of fewer is merged in the calling thread


class Sink(Protocol):
    """Where a recipe's result goes. `write` may be called from several threads, for different tensors."""

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        """Take elements [start, start + len(values)) of a tensor, flat, in the compute dtype (buffers: in their own)."""


class Observer(Protocol):
    """Sees what became of each slice's task vectors in one recipe: the audit. levels: shares of largest magnitudes whose thresholds it needs."""

    @property
    def levels(self) -> tuple[float, ...]: ...

    def see(self, tensor: TensorRecipe, piece: Piece, agreement: Agreement | None) -> None: ...


def run(
    plan: Plan,
    sinks: Sequence[Sink | None],
    observers: Sequence[Observer | None] | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    memory: int = MEMORY,
    progress: Callable[[Plan, Output], None] | None = None,
) -> None:
    """Merge every recipe of `plan` into its sink.

    threads: tensors worked on at a time (default: torch's number of threads). memory: bytes for working sets of all threads,
    above the few MB that slices take. Raises BadInput for NaN or infinite weights, naming file and tensor.
    """
    keep_heap()
    workers = threads or torch.get_num_threads()
    resident = memory // (workers * RESIDENT_BYTES)
    watching = list(observers) if observers is not None else [None] * len(plan.recipes)

    def one(output: Output) -> None:
        _merge_tensor(Job(plan, output, torch.device(device), resident), sinks, watching)
        if progress is not None:
            progress(plan, output)

    by_size = sorted(plan.outputs, key=lambda output: -output.numel)
    if workers == 1 or sum(output.numel for output in by_size) < SMALL:
        for output in by_size:
            one(output)
        return
    before = torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for done in [pool.submit(one, output) for output in by_size]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(before)


def _merge_tensor(job: Job, sinks: Sequence[Sink | None], observers: Sequence[Observer | None]) -> None:
    plan, output = job.plan, job.output
    if not output.floating:
        _copy_buffer(plan, output, sinks)
        return
    if output.numel == 0:
        return
    tensors = [TensorRecipe.of(recipe, plan, output) for recipe in plan.recipes]
    groups: dict[Any, list[tuple[TensorRecipe, Sink | None, Observer | None]]] = {}
    for tensor, sink, observer in zip(tensors, sinks, observers, strict=True):
        groups.setdefault(tensor.signature, []).append((tensor, sink, observer))
    with torch.no_grad():
        _select(job, tensors, observers)
        _scale(job, tensors)
        for piece in job.pieces():
            for alike in groups.values():
                agreement = alike[0][0].agree(piece)
                for tensor, sink, observer in alike:
                    values = tensor.merge(piece, agreement)
                    # a sum is several times faster than isfinite, which only has to say whether the sum itself overflowed
                    if not math.isfinite(values.sum()) and not torch.isfinite(values).all():
                        raise _culprit(plan, output)
                    if sink is not None:
                        sink.write(output, piece.start, values.view(-1))
                    if observer is not None:
                        observer.see(tensor, piece, agreement)


def _select(job: Job, tensors: Sequence[TensorRecipe], observers: Sequence[Observer | None]) -> None:
    """Find the magnitude thresholds that the recipes trim at, and those of the audit's levels."""
    ranks: dict[tuple[Parent, torch.dtype], set[int]] = {}
    for tensor, observer in zip(tensors, observers, strict=True):
        for use in tensor.uses:
            wanted = {k for k in use.ranks if k > 0}
            if observer is not None:
                wanted |= {kept(level, job.output.numel) for level in observer.levels}
            ranks.setdefault((use.parent, tensor.dtype), set()).update(wanted)
    for (parent, dtype), wanted in ranks.items():
        if wanted:

            def pieces(parent: Parent = parent, dtype: torch.dtype = dtype) -> Iterator[Array]:
                return (piece.bits(parent, dtype) for piece in job.pieces())

            try:
                ranking = rank(pieces, wanted, job.output.numel, dtype, job.resident)
            except NotFinite:
                raise _culprit(job.plan, job.output) from None
            job.energies[parent, dtype] = ranking.energy
            job.thresholds.update({(parent, dtype, k): threshold for k, threshold in ranking.thresholds.items()})


def _scale(job: Job, tensors: Sequence[TensorRecipe]) -> None:
    """Let the recipes that need sums over the whole tensor gather them."""
    waiting = [tensor for tensor in tensors if tensor.needs_sums]
    if waiting:
        for piece in job.pieces():
            for tensor in waiting:
                tensor.gather(piece)


def _copy_buffer(plan: Plan, output: Output, sinks: Sequence[Sink | None]) -> None:
    """Whole-number tensors are not merged: the parents must agree on them."""
    lead = plan.parents[plan.leader]
    values = lead.read(output.sources[plan.leader], 0, output.numel)
    for key, parent in plan.parents.items():
        if not torch.equal(values, parent.read(output.sources[key], 0, output.numel)):
            raise BadInput(f"{parent.folder}: buffer {output.name} differs from that of {lead.folder}: whole numbers cannot be merged")
    for sink in sinks:
        if sink is not None:
            sink.write(output, 0, values)


def _culprit(plan: Plan, output: Output) -> BadInput:
    """Says which parent's tensor is not finite."""
    for key, parent in plan.parents.items():
        if not is_finite(parent, output.sources[key]):
            return not_finite(parent, output.sources[key])
    return BadInput(f"tensor {output.name}: the merge overflows in the compute dtype; use compute_dtype: float32 and smaller weights")
