"""Task vectors with zeros where they are trimmed or dropped, and what makes up for it."""

from __future__ import annotations

from typing import Any

import numpy

from merge.loops.arguments import Rescale, Trim
from merge.loops.decorator import compiled
from merge.loops.stored_numbers import narrow



@compiled()
def thin(tau: Array, edge: Any, below: Any, left: int, size: int, out: Array) -> int:
    """τ where |τ| is above the edge, or at it while `left` lasts; else 0. Returns what is left. out may be τ itself."""
    zero = numpy.float32(0)
    if edge < 0:
        for i in range(size):
            out[i] = tau[i]
        return left
    tied = 0
    if left > 0:
        at_edge = numpy.uint32(0)
        for i in range(size):
            at_edge += numpy.uint32(abs(tau[i]) == edge)
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
def trimmed(tau: Array, trim: Trim, m: int, size: int, spare: Array, kept: Array) -> None:
    """What trimming keeps of model m's τ, without the largest of all where these are dropped as well.

    kept may be τ itself.
    """
    drops_largest = trim.edges[1, m] < numpy.inf
    if drops_largest:
        trim.left[1, m] = thin(tau, trim.edges[1, m], trim.below[1, m], trim.left[1, m], size, spare)
    trim.left[0, m] = thin(tau, trim.edges[0, m], trim.below[0, m], trim.left[0, m], size, kept)
    if drops_largest:
        for i in range(size):
            kept[i] -= spare[i]


@compiled()
def dropped(tau: Array, mask: Array, size: int, kept: Array) -> None:
    """τ where the mask is 1, else a zero with its sign."""
    for i in range(size):
        kept[i] = tau[i] * numpy.float32(mask[i])


@compiled()
def rescaled(kept: Array, times: Any, over: Any, kind: int, size: int, tau: Array) -> None:
    """What was kept, times or over a number: one of them is 1."""
    for i in range(size):
        tau[i] = narrow(kept[i] * times / over, kind)


@compiled()
def rescaled_by_chance(kept: Array, probability: Array, kind: int, size: int, tau: Array) -> None:
    """What was kept, over the probability that it had to be."""
    for i in range(size):
        tau[i] = narrow(kept[i] / probability[i], kind)


@compiled()
def made_up_for(kept: Array, rescale: Rescale, m: int, start: int, kind: int, size: int, tau: Array) -> None:
    """What was kept of model m, rescaled."""
    if rescale.by_chance:
        rescaled_by_chance(kept, rescale.probabilities[m, start : start + size], kind, size, tau)
    else:
        rescaled(kept, rescale.times[m], rescale.over[m], kind, size, tau)
