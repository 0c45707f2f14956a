"""What an audit counts of a block."""

from __future__ import annotations

from typing import Any

import numpy

from merge.loops.formats import compiled
from merge.loops.tables import NO_SLACK, Combine, Tallies

Array = Any  # numpy array
KEPT, IN_CONFLICT, LOST = numpy.uint32(1), numpy.uint32(1 << 10), numpy.uint32(1 << 20)  # counted in one number


@compiled(fastmath={"reassoc", "nsz"})
def sum_of_squares(x: Array, size: int) -> float:
    """Σ x² in float64, in whatever order is fast."""
    energy = numpy.float64(0)
    for i in range(size):
        energy += numpy.float64(x[i]) * numpy.float64(x[i])
    return energy


@compiled(fastmath={"reassoc", "nsz"})
def energy_alive(kept: Array, alive: Array, elected: bool, size: int) -> float:
    """Σ τ² of what entered the merge."""
    energy = numpy.float64(0)
    for i in range(size):
        entered = kept[i] if (not elected) | (alive[i] > numpy.float32(0)) else numpy.float32(0)
        energy += numpy.float64(entered) * numpy.float64(entered)
    return energy


@compiled()
def mark_model(kept: Array, alive: Array, fought: Array, how: Combine, seen: Tallies, size: int, marks: Array) -> None:
    """What there is to count of each value of one model: KEPT, IN_CONFLICT and LOST, 0 for a zero.

    fought: see `tally`.
    """
    zero, none = numpy.float32(0), numpy.uint32(0)
    for i in range(size):
        other = numpy.uint32(2) if kept[i] < zero else numpy.uint32(4)
        bits = numpy.uint32(1) if how.elect & seen.own_signs else other
        conflict = IN_CONFLICT if (fought[i] & bits) != none else none
        lost = LOST if how.elect & (not alive[i] > zero) else none
        marks[i] = KEPT + conflict + lost if kept[i] != zero else none


@compiled()
def count_marks(kept: Array, marks: Array, m: int, seen: Tallies, size: int) -> None:
    """Count model m's values of a block that were kept, met the other sign, and lost, by level."""
    for row in range(seen.counts.shape[1]):
        least = numpy.float32(0) if row == 0 else seen.levels[row - 1, m]
        total = numpy.uint32(0)  # of all three, as no block has 2¹⁰ values
        for i in range(size):
            total = numpy.uint32(total + (marks[i] if abs(kept[i]) >= least else numpy.uint32(0)))
        for place in range(3):
            seen.counts[m, row, place] += (total >> numpy.uint32(10 * place)) & numpy.uint32(1023)


@compiled()
def tally_turned(voter: Array, plain: Array, alive: Array, m: int, seen: Tallies, size: int) -> None:
    """Count what slack regained and gave up of model m. plain: what ξ = 0 elects."""
    zero = numpy.float32(0)
    regained, given_up = numpy.uint32(0), numpy.uint32(0)
    for i in range(size):
        now = alive[i] > zero
        before = voter[i] * plain[i] > zero
        regained = numpy.uint32(regained + numpy.uint32(now & (not before)))
        given_up = numpy.uint32(given_up + numpy.uint32(before & (not now)))
    seen.turned[m, 0] += regained
    seen.turned[m, 1] += given_up


@compiled()
def tally(kept: Array, alive: Array, plain: Array, voters: Array, how: Combine, seen: Tallies, size: int) -> None:
    """Count a block. plain: what ξ = 0 elects."""
    zero, none = numpy.float32(0), numpy.uint32(0)
    fought, marks = seen.work[0], seen.work[1]  # 1: some model lost; 2: some value is above zero; 4: below
    for i in range(size):
        fought[i] = none
    for m in range(len(kept)):
        for i in range(size):
            gone = numpy.uint32(1) if (kept[m, i] != zero) & how.elect & (not alive[m, i] > zero) else none
            above = numpy.uint32(2) if kept[m, i] > zero else none
            below = numpy.uint32(4) if kept[m, i] < zero else none
            fought[i] |= gone | above | below
    for m in range(len(kept)):
        mark_model(kept[m], alive[m], fought, how, seen, size, marks)
        count_marks(kept[m], marks, m, seen, size)
        if how.form != NO_SLACK:
            tally_turned(voters[m], plain, alive[m], m, seen, size)
        seen.energies[1 + m] += energy_alive(kept[m], alive[m], how.elect, size)
