"""Threads that work through a plan's tensors, each on a tensor of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from common.errors import BadInput, line_of
from merge.checkpoints.checkpoint import FLOATS, Checkpoint, keep_heap
from merge.engine.fused import FusedCounts, FusedMerge, Loops, fused, loops_for
from merge.engine.outputs import Output
from merge.engine.pieces import Job, Piece, Selection, Subject
from merge.engine.plan import Plan
from merge.engine.tensor_recipe import MergedDelta, Observer, TaskVectorMerge, TensorRecipe
from merge.loops.tables import KINDS, Stored
from merge.select import (
    INFINITE,
    Array,
    Counting,
    DeviceCounting,
    DigitCounting,
    NotFinite,
    count_kept,
    magnitude_bits,
    rank,
)

SMALL = 1 << 23  # elements; a model of fewer is merged in the calling thread
MEMORY = 1 << 29  # bytes
RESIDENT_BYTES = 5  # an element's magnitude, and a mask while ties are counted


@dataclass(frozen=True)
class Workers:
    """How much work is done at a time.

    threads: tensors worked on at a time (default: torch's number of threads). memory: bytes for working sets of all
    threads, above the few MB that slices take. progress: called after every tensor of a pass. note: takes
    a line for the user about the models.
    """

    device: str = "cpu"
    threads: int | None = None
    memory: int = MEMORY
    progress: Callable[[Plan, Output], None] | None = None
    note: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        """Reject a device that does not exist."""
        if self.device != "cpu":
            try:
                torch.zeros(1, device=self.device).item()
            except Exception as error:  # of every backend its own
                raise BadInput(
                    f"device={self.device}: {line_of(error)[:120]}; use cpu, or a device that is here"
                ) from None

    @property
    def count(self) -> int:
        return self.threads or torch.get_num_threads()

    @property
    def resident(self) -> int:
        """Return how many elements of a tensor a thread may hold at once."""
        return self.memory // (self.count * RESIDENT_BYTES)

    def each(self, plan: Plan, work: Callable[[Output], None]) -> None:
        """Call `work` for every tensor of the result, the largest first; the first error ends the pass."""

        def work_and_tell(output: Output) -> None:
            work(output)
            if self.progress is not None:
                self.progress(plan, output)

        by_size = sorted(plan.outputs, key=lambda output: -output.numel)
        if self.count == 1 or sum(output.numel for output in by_size) < SMALL:
            for output in by_size:
                work_and_tell(output)
            return
        before = torch.get_num_threads()
        with ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for done in [pool.submit(work_and_tell, output) for output in by_size]:
                    done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                torch.set_num_threads(before)


DEFAULT = Workers()


class Sink(Protocol):
    """The target of a recipe's result. `write` may be called from several threads, for different tensors."""

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
    """Return factors of λ, by recipe, that make ‖λ·τ_m‖ of the whole model `norm` times ‖τ‖ of norm_reference.

    One pass over the parents; norms are summed in float64, tensors in the plan's order. 1 for recipes without `norm`,
    and where nothing is merged. Returns the factors, and what it had to survey.
    """
    asking = [i for i, recipe in enumerate(plan.recipes) if recipe.norm is not None]
    selections: dict[str, Selection] = {}
    energies: dict[str, list[tuple[float, float]]] = {}  # by tensor and asking recipe: of λ·τ_m, of the reference

    def measure(output: Output) -> None:
        job = Job(plan, output, torch.device(workers.device), workers.resident, loops=loops)
        tensors = [TensorRecipe.of(recipe, plan, output) for recipe in plan.recipes]
        selections[output.name] = surveyed[output.name] if surveyed is not None else select(job, tensors, observers)
        job.selection = selections[output.name]
        sums = [(0.0, 0.0)] * len(asking)
        if output.floating and output.numel:
            needed = [tensor for i in asking if isinstance(tensor := tensors[i], TaskVectorMerge)]
            with _overflow_named(job, tensors[0].dtype):
                _gather(job, needed)
                for piece in job.pieces():
                    steps = [tensor.squared_norms(piece) for tensor in needed]
                    sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, steps, strict=True)]
        energies[output.name] = sums

    with torch.no_grad():
        workers.each(plan, measure)
    factors = [1.0] * len(plan.recipes)
    for row, i in enumerate(asking):
        merged, reference = (
            math.sqrt(math.fsum(energies[output.name][row][side] for output in plan.outputs)) for side in (0, 1)
        )
        factors[i] = (plan.recipes[i].norm or 1.0) * reference / merged if merged else 1.0
    return factors, selections


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
        _gather(job, tensors)
        loops = {
            signature: fused([tensor for tensor, _, _ in alike], job, [observer for _, _, observer in alike])
            for signature, alike in groups.items()
        }
        for piece in job.pieces():
            for signature, alike in groups.items():
                merged = [tensor for tensor, _, _ in alike]
                written, delta = _merged(loops[signature], merged, piece)
                for values, (tensor, sink, observer) in zip(written, alike, strict=True):
                    if (own := tensor.recipe.special_rows) is not None:
                        values = job.plan.special[own].put(values, job.output, piece, tensor.dtype)
                    if sink is not None:
                        sink.write(job.output, piece.start, values.view(-1))
                    if observer is not None:
                        observer.observe(tensor, piece, delta)


def _merged(
    loop: FusedMerge | None, alike: Sequence[TensorRecipe], piece: Piece
) -> tuple[Iterator[torch.Tensor], MergedDelta | FusedCounts | None]:
    """Return the merged slice of recipes with one signature, in their dtypes, and what an audit observes.

    Raises BadInput if a result is not finite.
    """
    if loop is None:
        delta = alike[0].merge_deltas(piece)
        return (_rounded(tensor, tensor.merge(piece, delta), piece.job) for tensor in alike), delta
    merged = loop.merge(piece)
    if merged.nonfinite:
        wrong = next(
            tensor
            for tensor, values in zip(alike, merged.values, strict=True)
            if values is not None and not _is_finite(values)
        )
        dtype = wrong.dtype if merged.nonfinite & 2 else wrong.out_dtype
        raise find_nonfinite(piece.job, str(dtype).removeprefix("torch."))
    return (
        _rounded(tensor, piece.theta(tensor.terms[0].parent, tensor.dtype), piece.job) if values is None else values
        for tensor, values in zip(alike, merged.values, strict=True)
    ), merged.counts


def _rounded(tensor: TensorRecipe, values: torch.Tensor, job: Job) -> torch.Tensor:
    """Return values in the dtype of the result. Raises BadInput if they are not finite."""
    written = values.to(tensor.out_dtype)
    if not _is_finite(written):
        dtype = tensor.out_dtype if _is_finite(values) else tensor.dtype
        raise find_nonfinite(job, str(dtype).removeprefix("torch."))
    return written


@contextmanager
def _overflow_named(job: Job, dtype: torch.dtype) -> Iterator[None]:
    """Raise BadInput for a number that is too large for the arithmetic, such as a product of settings."""
    try:
        yield
    except (OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "overflow" not in str(error):
            raise
        raise find_nonfinite(job, str(dtype).removeprefix("torch.")) from None


def _is_finite(values: torch.Tensor) -> bool:
    """Test the sum, which takes a fraction of isfinite's time, and each value only if the sum overflowed."""
    return math.isfinite(values.sum()) or bool(torch.isfinite(values).all())


def _gather(job: Job, tensors: Sequence[TensorRecipe]) -> None:
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


CHUNK = 1 << 20  # elements


def survey(plan: Plan, observers: Sequence[Observer | None], workers: Workers) -> dict[str, Selection]:
    """Read every tensor that the merge will read, once. Raises BadInput that names file and tensor."""
    keep_heap()
    loops = loops_for(plan, workers.device, workers.progress is not None)
    selections: dict[str, Selection] = {}

    def survey_output(output: Output) -> None:
        job = Job(plan, output, torch.device(workers.device), workers.resident, loops=loops)
        selections[output.name] = select(
            job, [TensorRecipe.of(recipe, plan, output) for recipe in plan.recipes], observers
        )
        seen = {parent for parent, _ in selections[output.name]}
        for parent, source in output.sources.items():
            looked_at = parent in seen or (seen and parent == output.leader)
            if not looked_at and not is_finite(plan.parents[parent], source):
                raise not_finite(plan.parents[parent], source)

    workers.each(plan, survey_output)
    return selections


def select(job: Job, tensors: Sequence[TensorRecipe], observers: Sequence[Observer | None]) -> Selection:
    """Find the thresholds that recipes need in one tensor, and those of their observers' levels.

    Raises BadInput for weights that are not finite.
    """
    selection: Selection = {}
    if not job.output.floating:
        _check_buffer(job)
    if not job.output.floating or not job.output.numel:
        return selection
    ranks: dict[tuple[Subject, torch.dtype], set[int]] = {}
    for tensor, observer in zip(tensors, observers, strict=True):
        levels = {count_kept(level, job.output.numel) for level in observer.levels} if observer else set()
        for term in tensor.terms:
            wanted = {k for k in (*term.ranks, term.scope) if k > 0} | levels
            if wanted or term.measured:
                ranks.setdefault((term.parent, tensor.dtype), set()).update(wanted)
        for subject, wanted in tensor.rankings(job).items():
            ranks.setdefault((subject, tensor.dtype), set()).update(wanted)
    try:
        terms = [(term, tensor.dtype) for tensor in tensors for term in tensor.terms]
        measured: set[tuple[Subject, torch.dtype]] = {(term.parent, dtype) for term, dtype in terms if term.measured}
        _rank(job, ranks, measured, selection)
    except NotFinite:
        raise find_nonfinite(job) from None
    return selection


def _rank(
    job: Job,
    ranks: Mapping[tuple[Subject, torch.dtype], set[int]],
    measured: set[tuple[Subject, torch.dtype]],
    selection: Selection,
) -> None:
    """Fill `selection`. Task vectors that can be counted are counted together, slice by slice: the base is read once.

    measured: whose energies results depend on, which are summed on tensors.
    """
    if job.device.type != "cpu":
        _rank_on_device(job, ranks, selection)
        return
    counted: dict[tuple[Subject, torch.dtype], Counting | DigitCounting] = {}
    for key in ranks:
        subject, dtype = key
        loops = (job.loops or {}).get(KINDS.get(dtype, -1)) if isinstance(subject, tuple) else None
        if dtype.itemsize == 2:
            counted[key] = Counting(dtype, loops)
        elif loops is not None and key not in measured:
            counted[key] = DigitCounting(loops)
    if counted:
        for piece in job.pieces():
            for key, counting in counted.items():
                if counting.loops is None:
                    counting.update(piece.bits(*key))
                else:
                    counting.update_by_difference(*_weights(piece, key))
    twice = {key: each for key, each in counted.items() if isinstance(each, DigitCounting) and each.choose(ranks[key])}
    if twice:
        for piece in job.pieces():
            for key, each in twice.items():
                each.update_below(*_weights(piece, key))
    for key, wanted in ranks.items():

        def pieces(key: tuple[Subject, torch.dtype] = key) -> Iterator[Array]:
            return (piece.bits(*key) for piece in job.pieces())

        selection[key] = (
            counted[key].ranking(wanted) if key in counted else rank(pieces, wanted, job.output.numel, job.resident)
        )


def _rank_on_device(job: Job, ranks: Mapping[tuple[Subject, torch.dtype], set[int]], selection: Selection) -> None:
    """Fill `selection` on the device: each slice is copied there once per pass."""
    waiting = {key: DeviceCounting(key[1], wanted, job.output.numel) for key, wanted in ranks.items()}
    while waiting:
        for piece in job.pieces():
            for key, counting in waiting.items():
                counting.update(piece.measure(*key))
        again = {key: counting for key, counting in waiting.items() if counting.another()}
        selection.update({key: counting.ranking() for key, counting in waiting.items() if key not in again})
        waiting = again


def _weights(piece: Piece, key: tuple[Subject, torch.dtype]) -> tuple[Stored, Stored]:
    """Return θ0 and θ of a task vector that compiled loops count."""
    subject, dtype = key
    assert isinstance(subject, tuple)
    return piece.stored(piece.job.output.leader, dtype), piece.stored(subject, dtype)


def find_nonfinite(job: Job, overflow: str = "") -> BadInput:
    """Return an error that names the parent's tensor that is not finite, or the dtype in which the merge overflows."""
    for key, source in job.output.sources.items():
        if not is_finite(job.plan.parents[key], source):
            return not_finite(job.plan.parents[key], source)
    hint = "a wider dtype and smaller weights" if overflow not in ("float32", "float64") else "smaller weights"
    return BadInput(f"tensor {job.output.name}: the merge overflows{overflow and f' in {overflow}'}; take {hint}")


def is_finite(parent: Checkpoint, name: str) -> bool:
    """Tell whether a tensor has no NaN or infinity; tensors of integers have none."""
    info = parent.tensors[name]
    if info.dtype not in FLOATS:
        return True
    for start in range(0, info.numel, CHUNK):
        values = parent.read(name, start, min(start + CHUNK, info.numel))
        if magnitude_bits(values).max() >= INFINITE[values.dtype]:
            return False
    return True


def not_finite(parent: Checkpoint, name: str) -> BadInput:
    """Return the error for one tensor, which names the file of the part that is not finite."""
    for checkpoint, part in parent.parts(name):
        if not is_finite(checkpoint, part):
            place = f"{checkpoint.tensors[part].file}: tensor {part}"
            return BadInput(f"{place} holds NaN or infinite values; train or export that checkpoint again")
    return BadInput(
        f"{parent.folder}: tensor {name} overflows in {parent.tensors[name].dtype} where its adapter is added; "
        "take an adapter with smaller values, or a base in a wider dtype"
    )


def _check_buffer(job: Job) -> None:
    """Check that the parents agree on a tensor of integers, as it is not merged."""
    plan, output = job.plan, job.output
    lead = plan.parents[output.leader]
    values = lead.read(output.sources[output.leader], 0, output.numel)
    for key, source in output.sources.items():
        parent = plan.parents[key]
        if not torch.equal(values, parent.read(source, 0, output.numel)):
            raise BadInput(
                f"{parent.folder}: buffer {output.name} differs from that of {lead.folder}: "
                "whole numbers cannot be merged"
            )
