"""Counts of parameters by bits packed into words: the arithmetic of the audit."""

from __future__ import annotations

import functools
import math

import numpy
import torch

from merge.engine.tensor_recipe import MergedDelta
from merge.select import Array, is_accurate

_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def patterns(tensor: torch.Tensor) -> Array:
    """Return flat bit patterns as signed integers of the same width."""
    return tensor.cpu().view(-1).view(_WHOLE[tensor.dtype.itemsize]).numpy()


def energy_alive(delta: MergedDelta, i: int, weight: float) -> float:
    """Compute Σ τ² of model i where it survived. weight: the factor of its votes."""
    assert delta.survivors is not None
    if delta.taus[i] is delta.kept[i] and abs(math.frexp(weight)[0]) == 0.5:  # a power of two: nothing was rounded
        return energy(delta.survivors[i]) / weight**2
    mask = (patterns(delta.survivors[i]) > 0).view(numpy.int8)
    alive = torch.from_numpy(patterns(delta.kept[i]) * mask).view(delta.kept[i].dtype)
    return energy(alive.view(delta.kept[i].shape))


def count(
    sizes: list[Array],
    kept: list[Array],
    survivors: list[Array],
    plain: list[Array],
    edges: list[list[int]],
    own_signs: bool,
) -> list[tuple[list[list[int]], tuple[int, int]]]:
    """Count, for each model, [kept, in conflict, lost] by level, and (regained, given up).

    The first row of the former counts all non-zero values, the others each level of `edges`.

    sizes: magnitudes of kept values; kept, survivors, plain: bit patterns of kept values, of survivors, and of
    survivors without slack.

    Each predicate is one bit per parameter, packed into words; a conjunction is one AND. own_signs: every model voted
    with its own sign (no negative weights), so a model that meets the other sign either loses or sees another lose, and
    the signs themselves are not needed.
    """
    present = [_packed(size > 0) for size in sizes]
    alive = [_packed(part > 0) for part in survivors] or present
    lost = [here & ~left for here, left in zip(present, alive, strict=True)]
    if survivors and own_signs:
        fought = functools.reduce(numpy.bitwise_or, lost)
        conflict = [here & fought for here in present]
    else:
        minus = [_packed(part < 0) & here for part, here in zip(kept, present, strict=True)]
        plus = [here & ~below for here, below in zip(present, minus, strict=True)]
        any_minus, any_plus = (functools.reduce(numpy.bitwise_or, side) for side in (minus, plus))
        conflict = [(above & any_minus) | (below & any_plus) for above, below in zip(plus, minus, strict=True)]
    counted = []
    for i, size in enumerate(sizes):
        rows = [[_ones(asked[i]) for asked in (present, conflict, lost)]]
        for inside in (_packed(size >= max(1, edge)) for edge in edges[i]):
            rows.append([_ones(inside), _ones(inside & conflict[i]), _ones(inside & lost[i])])
        before = _packed(plain[i] > 0) if plain else alive[i]
        counted.append((rows, (_ones(alive[i] & ~before), _ones(before & ~alive[i])) if plain else (0, 0)))
    return counted


def _ones(words: Array) -> int:
    return int(numpy.bitwise_count(words).sum(dtype=numpy.uint32))


def _packed(mask: Array) -> Array:
    """Pack a flat mask into whole words."""
    bits = numpy.packbits(mask)
    if spare := -len(bits) % 8:
        bits = numpy.pad(bits, (0, spare))
    return bits.view(numpy.uint64)


def energy(tau: torch.Tensor) -> float:
    """Compute Σ τ², row by row, since a norm in float32 loses digits over many elements."""
    rows = torch.linalg.vector_norm(tau, dim=-1, dtype=torch.promote_types(tau.dtype, torch.float32))
    energy = float(rows.double().square().sum())
    return energy if is_accurate(energy, tau.numel()) else float(tau.double().square().sum())
