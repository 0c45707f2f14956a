"""Counts of magnitudes, from which thresholds are found (merge/select.py), and task vectors trimmed at thresholds.

Also what rescales a task vector after values were trimmed or dropped.
"""

from __future__ import annotations

from typing import Any

import numpy

from merge.loops.formats import bits_of, compiled, narrow, to_bfloat16, to_float16
from merge.loops.tables import BFLOAT16, BINS, DIGIT, FLOAT16, Rescale, Trim

Array = Any  # numpy array


@compiled()
def count_magnitudes(tau: Array, kind: int, size: int, places: Array, counts: Array) -> None:
    """Count a block's magnitudes: all 15 bits of them in 16-bit arithmetic, the upper 15 in float32's.

    places: a block to work in, so that the patterns are found in vectors.
    """
    for i in range(size):
        if kind == BFLOAT16:
            pattern = to_bfloat16(tau[i])
        elif kind == FLOAT16:
            pattern = to_float16(tau[i])
        else:
            pattern = numpy.uint16(bits_of(tau[i]) >> numpy.uint32(DIGIT))
        places[i] = pattern & numpy.uint16(0x7FFF)
    for i in range(size):
        counts[places[i]] += 1


@compiled()
def count_zeros(tau: Array, size: int) -> int:
    """Count the zeros of a block."""
    zeros = numpy.uint32(0)
    for i in range(size):
        zeros = numpy.uint32(zeros + numpy.uint32(tau[i] == numpy.float32(0)))  # numba adds in 64 bits
    return int(zeros)


@compiled()
def count_below(tau: Array, size: int, rows: Array, counts: Array) -> None:
    """Count float32's magnitudes by their lower 16 bits, in a row of `counts` for each of some upper 15.

    rows: by the upper bits, the row; -1 for those that are not looked into.
    """
    for i in range(size):
        bits = bits_of(tau[i])
        row = rows[(bits >> numpy.uint32(DIGIT)) & numpy.uint32(0x7FFF)]
        if row >= 0:
            counts[row, bits & numpy.uint32(BINS - 1)] += 1


@compiled()
def keep_above(tau: Array, edge: Any, below: Any, left: int, size: int, out: Array) -> int:
    """Copy τ where |τ| is above the edge, or equal to it for the first `left` of these; write 0 elsewhere.

    Return how many equal ones may still be kept. below: the next smaller number than the edge. out may be τ itself.
    """
    zero = numpy.float32(0)
    if edge < 0:
        for i in range(size):
            out[i] = tau[i]
        return left
    tied = 0
    if left > 0:
        at_edge = numpy.uint32(0)
        for i in range(size):
            at_edge = numpy.uint32(at_edge + numpy.uint32(abs(tau[i]) == edge))
        tied = int(at_edge)
    if tied > left:
        for i in range(size):
            stays = abs(tau[i]) > edge
            if abs(tau[i]) == edge and left > 0:
                stays = True
                left -= 1
            out[i] = tau[i] if stays else zero
        return left
    least = below if left > 0 else edge
    for i in range(size):
        out[i] = tau[i] if abs(tau[i]) > least else zero
    return left - tied


@compiled()
def trim_task_vector(tau: Array, trim: Trim, m: int, size: int, spare: Array, kept: Array) -> None:
    """Trim model m's τ: keep the largest, without the very largest if these are dropped too. kept may be τ itself."""
    drops_largest = trim.edges[1, m] < numpy.inf
    if drops_largest:
        trim.left[1, m] = keep_above(tau, trim.edges[1, m], trim.below[1, m], trim.left[1, m], size, spare)
    trim.left[0, m] = keep_above(tau, trim.edges[0, m], trim.below[0, m], trim.left[0, m], size, kept)
    if drops_largest:
        for i in range(size):
            kept[i] -= spare[i]


@compiled()
def drop_values(tau: Array, mask: Array, size: int, kept: Array) -> None:
    """Multiply τ with a mask of 0 and 1, so that zeros have its sign."""
    for i in range(size):
        kept[i] = tau[i] * numpy.float32(mask[i])


@compiled()
def rescale_values(kept: Array, times: Any, over: Any, kind: int, size: int, tau: Array) -> None:
    """Multiply by `times` and divide by `over`, one of which is 1."""
    for i in range(size):
        tau[i] = narrow(kept[i] * times / over, kind)


@compiled()
def rescale_by_probability(kept: Array, probability: Array, kind: int, size: int, tau: Array) -> None:
    """Divide what was kept by the probability to be kept."""
    for i in range(size):
        tau[i] = narrow(kept[i] / probability[i], kind)


@compiled()
def rescale_task_vector(kept: Array, rescale: Rescale, m: int, start: int, kind: int, size: int, tau: Array) -> None:
    """Rescale what was kept of model m."""
    if rescale.by_chance:
        rescale_by_probability(kept, rescale.probabilities[m, start : start + size], kind, size, tau)
    else:
        rescale_values(kept, rescale.times[m], rescale.over[m], kind, size, tau)
