"""What an audit counts of a block."""

from __future__ import annotations

from typing import Any

import numpy

from merge.loops.arguments import NO_SLACK, Combine, Tallies
from merge.loops.decorator import compiled

Array = Any  # numpy array


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
def tally_model(kept: Array, alive: Array, fought: Array, m: int, how: Combine, seen: Tallies, size: int) -> None:
    """Count model m's values of a block that were kept, met the other sign, and lost, by level."""
    zero, none, all_of = numpy.float32(0), numpy.uint32(0), numpy.uint32(1)
    for row in range(seen.counts.shape[1]):
        least = zero if row == 0 else seen.levels[row - 1, m]
        here, conflict, lost = none, none, none
        for i in range(size):
            inside = all_of if (kept[i] != zero) & (abs(kept[i]) >= least) else none
            other = numpy.uint32(2) if kept[i] < zero else numpy.uint32(4)
            bits = numpy.uint32(1) if how.elect & seen.own_signs else other
            here += inside
            conflict += inside if (fought[i] & bits) != none else none
            lost += inside if how.elect & (not alive[i] > zero) else none
        seen.counts[m, row, 0] += here
        seen.counts[m, row, 1] += conflict
        seen.counts[m, row, 2] += lost


@compiled()
def tally_turned(voter: Array, plain: Array, alive: Array, m: int, seen: Tallies, size: int) -> None:
    """Count what slack regained and gave up of model m. plain: what ξ = 0 elects."""
    zero, none, one = numpy.float32(0), numpy.uint32(0), numpy.uint32(1)
    regained, given_up = none, none
    for i in range(size):
        now = alive[i] > zero
        before = voter[i] * plain[i] > zero
        regained += one if now & (not before) else none
        given_up += one if before & (not now) else none
    seen.turned[m, 0] += regained
    seen.turned[m, 1] += given_up


@compiled()
def tally(kept: Array, alive: Array, plain: Array, voters: Array, how: Combine, seen: Tallies, size: int) -> None:
    """Count a block. plain: what ξ = 0 elects."""
    zero, none = numpy.float32(0), numpy.uint32(0)
    fought = seen.fought  # 1: some model lost; 2: some value is above zero; 4: below
    for i in range(size):
        fought[i] = none
    for m in range(len(kept)):
        for i in range(size):
            gone = numpy.uint32(1) if (kept[m, i] != zero) & how.elect & (not alive[m, i] > zero) else none
            above = numpy.uint32(2) if kept[m, i] > zero else none
            below = numpy.uint32(4) if kept[m, i] < zero else none
            fought[i] |= gone | above | below
    for m in range(len(kept)):
        tally_model(kept[m], alive[m], fought, m, how, seen, size)
        if how.form != NO_SLACK:
            tally_turned(voters[m], plain, alive[m], m, seen, size)
        seen.energies[1 + m] += energy_alive(kept[m], alive[m], how.elect, size)
