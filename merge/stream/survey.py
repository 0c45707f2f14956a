"""The pass before the merge: what has to be known of whole tensors, and whether they can be merged at all.

It finds the magnitude thresholds that recipes trim at and those of the audit's levels, and rejects NaN and infinite
weights, which selection notices on its way; tensors that nothing is selected in are read for that alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from common.errors import BadInput
from merge.checkpoints.checkpoint import FLOATS, Checkpoint, keep_heap
from merge.engine.outputs import Output
from merge.engine.plan import Plan
from merge.loops.calls import KINDS, Stored
from merge.select import INFINITE, Array, Counting, DigitCounting, NotFinite, kept, magnitude_bits, rank
from merge.select_on_device import DeviceCounting
from merge.stream.fused import loops_for
from merge.stream.pieces import Job, Piece, Selection, Subject
from merge.stream.tensor_recipe import Observer, TensorRecipe
from merge.stream.threads import Workers

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
    """The thresholds that recipes ask for in one tensor, and those of their observers' levels.

    Raises BadInput for weights that are not finite.
    """
    selection: Selection = {}
    if not job.output.floating:
        _check_buffer(job)
    if not job.output.floating or not job.output.numel:
        return selection
    ranks: dict[tuple[Subject, torch.dtype], set[int]] = {}
    for tensor, observer in zip(tensors, observers, strict=True):
        levels = {kept(level, job.output.numel) for level in observer.levels} if observer else set()
        for term in tensor.terms:
            wanted = {k for k in (*term.ranks, term.scope) if k > 0} | levels
            if wanted or term.measured:
                ranks.setdefault((term.parent, tensor.dtype), set()).update(wanted)
        for subject, wanted in tensor.joint_ranks(job).items():
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
    """Fill `selection`. What can be counted is, for all task vectors of a slice at a time: the base is read once.

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
                    counting.see(piece.bits(*key))
                else:
                    counting.see_difference(*_weights(piece, key))
    twice = {key: each for key, each in counted.items() if isinstance(each, DigitCounting) and each.choose(ranks[key])}
    if twice:
        for piece in job.pieces():
            for key, each in twice.items():
                each.see_difference_below(*_weights(piece, key))
    for key, wanted in ranks.items():

        def pieces(key: tuple[Subject, torch.dtype] = key) -> Iterator[Array]:
            return (piece.bits(*key) for piece in job.pieces())

        selection[key] = (
            counted[key].ranking(wanted) if key in counted else rank(pieces, wanted, job.output.numel, job.resident)
        )


def _rank_on_device(job: Job, ranks: Mapping[tuple[Subject, torch.dtype], set[int]], selection: Selection) -> None:
    """Fill `selection` where the task vectors lie: a slice is brought to the device once a pass."""
    waiting = {key: DeviceCounting(key[1], wanted, job.output.numel) for key, wanted in ranks.items()}
    while waiting:
        for piece in job.pieces():
            for key, counting in waiting.items():
                counting.see(piece.measure(*key))
        again = {key: counting for key, counting in waiting.items() if counting.another()}
        selection.update({key: counting.ranking() for key, counting in waiting.items() if key not in again})
        waiting = again


def _weights(piece: Piece, key: tuple[Subject, torch.dtype]) -> tuple[Stored, Stored]:
    """θ0 and θ of a task vector that compiled loops count."""
    subject, dtype = key
    assert isinstance(subject, tuple)
    return piece.stored(piece.job.output.leader, dtype), piece.stored(subject, dtype)


def find_nonfinite(job: Job, overflow: str = "") -> BadInput:
    """Says which parent's tensor is not finite; where all are, that the merge itself overflows, in dtype `overflow`."""
    for key, source in job.output.sources.items():
        if not is_finite(job.plan.parents[key], source):
            return not_finite(job.plan.parents[key], source)
    hint = "a wider dtype and smaller weights" if overflow not in ("float32", "float64") else "smaller weights"
    return BadInput(f"tensor {job.output.name}: the merge overflows{overflow and f' in {overflow}'}; take {hint}")


def is_finite(parent: Checkpoint, name: str) -> bool:
    """Whether a tensor holds numbers only; whole-number tensors do."""
    info = parent.tensors[name]
    if info.dtype not in FLOATS:
        return True
    for start in range(0, info.numel, CHUNK):
        values = parent.read(name, start, min(start + CHUNK, info.numel))
        if magnitude_bits(values).max() >= INFINITE[values.dtype]:
            return False
    return True


def not_finite(parent: Checkpoint, name: str) -> BadInput:
    """The refusal, for one tensor: names the file of the part that is at fault."""
    for checkpoint, part in parent.parts(name):
        if not is_finite(checkpoint, part):
            place = f"{checkpoint.tensors[part].file}: tensor {part}"
            return BadInput(f"{place} holds NaN or infinite values; train or export that checkpoint again")
    return BadInput(
        f"{parent.folder}: tensor {name} overflows in {parent.tensors[name].dtype} where its adapter is added; "
        "take an adapter with smaller values, or a base in a wider dtype"
    )


def _check_buffer(job: Job) -> None:
    """Whole-number tensors are not merged: the parents must agree on them."""
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
