"""Counts of magnitudes, by which parameters are selected (merge/select.py)."""

from __future__ import annotations

from typing import Any

import numpy

from merge.loops.arguments import BFLOAT16, BINS, DIGIT, FLOAT16
from merge.loops.decorator import compiled
from merge.loops.stored_numbers import bits_of, to_bfloat16, to_float16

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
    """How many of a block are zero."""
    zeros = numpy.uint32(0)
    for i in range(size):
        zeros += numpy.uint32(tau[i] == numpy.float32(0))
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
