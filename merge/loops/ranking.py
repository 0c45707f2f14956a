"""Ranks of magnitudes in rows, by which DELLA draws (methods.row_ranks, methods.keep_probabilities)."""

from __future__ import annotations

from typing import Any

import numpy

from merge.loops.arguments import BFLOAT16, FLOAT16
from merge.loops.decorator import compiled
from merge.loops.stored_numbers import bits_of, to_bfloat16, to_float16

Array = Any  # numpy array


@compiled()
def magnitude_keys(tau: Array, kind: int, size: int, keys: Array) -> None:
    """Whole numbers that grow with the magnitudes of a block: 15 bits in 16-bit arithmetic, else 31."""
    for i in range(size):
        if kind == BFLOAT16:
            keys[i] = numpy.uint32(to_bfloat16(tau[i])) & numpy.uint32(0x7FFF)
        elif kind == FLOAT16:
            keys[i] = numpy.uint32(to_float16(tau[i])) & numpy.uint32(0x7FFF)
        else:
            keys[i] = bits_of(tau[i]) & numpy.uint32(0x7FFFFFFF)


@compiled()
def sort_by_byte(keys: Array, order: Array, byte: int, size: int, starts: Array, out: Array) -> None:
    """`order` sorted by one byte of the keys, what is equal in the order that it had (a step of radix sort)."""
    shift = numpy.uint32(8 * byte)
    for value in range(256):
        starts[value] = 0
    for i in range(size):
        starts[(keys[i] >> shift) & numpy.uint32(255)] += 1
    total = 0
    for value in range(256):
        total, starts[value] = total + starts[value], total
    for i in range(size):
        place = (keys[order[i]] >> shift) & numpy.uint32(255)
        out[starts[place]] = order[i]
        starts[place] += 1


@compiled()
def draw_row(keys: Array, draws: Array, low: Any, step: Any, work: Array, bytes_of_key: int, mask: Array) -> None:
    """Where the draw is below the probability low + rank · step: 1, else 0.

    work: uint32 [3, at least 256], whose first row is left with the values' order: by magnitude, equal ones by place.
    """
    size = len(draws)
    order, other, starts = work[0], work[1], work[2]
    for i in range(size):
        order[i] = i
    for byte in range(0, bytes_of_key, 2):  # an even number: the order ends where it began
        sort_by_byte(keys, order, byte, size, starts, other)
        sort_by_byte(keys, other, byte + 1, size, starts, order)
    for rank in range(size):
        place = order[rank]
        mask[place] = numpy.uint8(draws[place] < low + numpy.float32(rank) * step)


@compiled()
def chances_of_row(order: Array, low: Any, step: Any, chances: Array) -> None:
    """The probabilities themselves. order: as `draw_row` leaves it."""
    for rank in range(len(chances)):
        chances[order[rank]] = low + numpy.float32(rank) * step
