"""Streams the parents' tensors through the methods, slice by slice, for any number of recipes at once.

For each tensor: the survey's pass (merge/stream/survey.py: thresholds for all densities), a pass for scales that need
the whole tensor (l1 rescaling, slerp's angle), and the pass that merges. Slices are whole rows of about SLICE elements,
so memory does not grow with the model, and each is read once per pass however many recipes use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from merge.checkpoints.checkpoint import keep_heap
from merge.engine.outputs import Output
from merge.engine.plan import Plan
from merge.stream.fused import Fused, FusedAgreement, Loops, fused, loops_for
from merge.stream.pieces import Job, Piece, Selection
from merge.stream.survey import find_nonfinite, select
from merge.stream.tensor_recipe import Agreement, Observer, TensorRecipe
from merge.stream.threads import DEFAULT, Workers


class Sink(Protocol):
    """Where a recipe's result goes. `write` may be called from several threads, for different tensors."""

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        """Take elements [start, start + len(values)) of a tensor, flat, in the dtype of the result."""


def run(
    plan: Plan,
    sinks: Sequence[Sink | None],
    observers: Sequence[Observer | None] | None = None,
    workers: Workers = DEFAULT,
    surveyed: Mapping[str, Selection] | None = None,
) -> None:
    """Merge every recipe of `plan` into its sink.

    surveyed: what `survey` found; without it each tensor is surveyed just before it is merged. Raises BadInput for NaN
    or infinite weights, naming file and tensor.
    """
    keep_heap()
    loops = loops_for(plan, workers.device, workers.progress is not None)
    watching = list(observers) if observers is not None else [None] * len(plan.recipes)
    factors = [1.0] * len(plan.recipes)
    if any(recipe.norm is not None for recipe in plan.recipes):
        factors, surveyed = fixed_norms(plan, watching, workers, surveyed, loops)

    def merge_output(output: Output) -> None:
        job = Job(plan, output, torch.device(workers.device), workers.resident, loops=loops)
        tensors = [
            TensorRecipe.of(recipe, plan, output, factor) for recipe, factor in zip(plan.recipes, factors, strict=True)
        ]
        job.selection = surveyed[output.name] if surveyed is not None else select(job, tensors, watching)
        if not output.floating:
            _copy_buffer(job, sinks)
        elif output.numel:
            with _overflow_named(job, tensors[0].dtype):
                _merge_tensor(job, tensors, sinks, watching)

    workers.each(plan, merge_output)


def fixed_norms(
    plan: Plan,
    observers: Sequence[Observer | None],
    workers: Workers,
    surveyed: Mapping[str, Selection] | None,
    loops: Loops | None = None,
) -> tuple[list[float], Mapping[str, Selection]]:
    """What λ is multiplied with, by recipe, so that ‖λ·τ_m‖ of the whole model is `norm` times ‖τ‖ of norm_reference.

    One pass over the parents; norms are summed in float64, tensors in the plan's order. 1 for recipes without `norm`,
    and where nothing is merged. Returns what it had to survey beside the factors.
    """
    asking = [i for i, recipe in enumerate(plan.recipes) if recipe.norm is not None]
    found: dict[str, Selection] = {}
    energies: dict[str, list[tuple[float, float]]] = {}  # by tensor and asking recipe: of λ·τ_m, of the reference

    def measure(output: Output) -> None:
        job = Job(plan, output, torch.device(workers.device), workers.resident, loops=loops)
        tensors = [TensorRecipe.of(recipe, plan, output) for recipe in plan.recipes]
        found[output.name] = surveyed[output.name] if surveyed is not None else select(job, tensors, observers)
        job.selection = found[output.name]
        sums = [(0.0, 0.0)] * len(asking)
        if output.floating and output.numel:
            asked = [tensors[i] for i in asking]
            with _overflow_named(job, tensors[0].dtype):
                _scale(job, asked)
                for piece in job.pieces():
                    steps = [tensor.squared_norms(piece) for tensor in asked]
                    sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, steps, strict=True)]
        energies[output.name] = sums

    with torch.no_grad():
        workers.each(plan, measure)
    factors = [1.0] * len(plan.recipes)
    for place, i in enumerate(asking):
        merged, reference = (
            math.sqrt(math.fsum(energies[output.name][place][side] for output in plan.outputs)) for side in (0, 1)
        )
        factors[i] = (plan.recipes[i].norm or 1.0) * reference / merged if merged else 1.0
    return factors, found


def _merge_tensor(
    job: Job,
    tensors: Sequence[TensorRecipe],
    sinks: Sequence[Sink | None],
    observers: Sequence[Observer | None],
) -> None:
    groups: dict[Any, list[tuple[TensorRecipe, Sink | None, Observer | None]]] = {}
    for tensor, sink, observer in zip(tensors, sinks, observers, strict=True):
        groups.setdefault(tensor.signature, []).append((tensor, sink, observer))
    with torch.no_grad():
        _scale(job, tensors)
        ways = {
            signature: fused([tensor for tensor, _, _ in alike], job, [observer for _, _, observer in alike])
            for signature, alike in groups.items()
        }
        for piece in job.pieces():
            for signature, alike in groups.items():
                merged = [tensor for tensor, _, _ in alike]
                written, agreement = _merged(ways[signature], merged, piece)
                for values, (tensor, sink, observer) in zip(written, alike, strict=True):
                    if (own := tensor.recipe.special_rows) is not None:
                        values = job.plan.special[own].put(values, job.output, piece, tensor.dtype)
                    if sink is not None:
                        sink.write(job.output, piece.start, values.view(-1))
                    if observer is not None:
                        observer.see(tensor, piece, agreement)


def _merged(
    loop: Fused | None, alike: Sequence[TensorRecipe], piece: Piece
) -> tuple[Iterator[torch.Tensor], Agreement | FusedAgreement | None]:
    """The merged slice of recipes with one agreement, in their dtypes, and that agreement.

    Raises BadInput where a result is not finite.
    """
    if loop is not None:
        results, found, seen = loop.merge(piece)
        if found:
            wrong = next(
                tensor
                for tensor, values in zip(alike, results, strict=True)
                if values is not None and not _is_finite(values)
            )
            dtype = wrong.dtype if found & 2 else wrong.out_dtype
            raise find_nonfinite(piece.job, str(dtype).removeprefix("torch."))
        return (
            _rounded(tensor, piece.theta(tensor.terms[0].parent, tensor.dtype), piece.job) if values is None else values
            for tensor, values in zip(alike, results, strict=True)
        ), seen
    agreement = alike[0].agree(piece)
    return (_rounded(tensor, tensor.merge(piece, agreement), piece.job) for tensor in alike), agreement


def _rounded(tensor: TensorRecipe, values: torch.Tensor, job: Job) -> torch.Tensor:
    """Values in the dtype of the result. Raises BadInput where they are not finite."""
    written = values.to(tensor.out_dtype)
    if not _is_finite(written):
        dtype = tensor.out_dtype if _is_finite(values) else tensor.dtype
        raise find_nonfinite(job, str(dtype).removeprefix("torch."))
    return written


@contextmanager
def _overflow_named(job: Job, dtype: torch.dtype) -> Iterator[None]:
    """A number that is too large for the arithmetic, such as a product of settings, named as what it is."""
    try:
        yield
    except (OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "overflow" not in str(error):
            raise
        raise find_nonfinite(job, str(dtype).removeprefix("torch.")) from None


def _is_finite(values: torch.Tensor) -> bool:
    """By the sum, which takes a fraction of isfinite's time; that says whether only the sum overflowed."""
    return math.isfinite(values.sum()) or bool(torch.isfinite(values).all())


def _scale(job: Job, tensors: Sequence[TensorRecipe]) -> None:
    """Let the recipes that need sums over the whole tensor gather them."""
    waiting = [tensor for tensor in tensors if tensor.needs_sums]
    if waiting:
        for piece in job.pieces():
            for tensor in waiting:
                tensor.gather(piece)


def _copy_buffer(job: Job, sinks: Sequence[Sink | None]) -> None:
    plan, output = job.plan, job.output
    values = plan.parents[output.leader].read(output.sources[output.leader], 0, output.numel)
    for sink in sinks:
        if sink is not None:
            sink.write(output, 0, values)
