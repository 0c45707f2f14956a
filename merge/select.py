"""Exact selection of the largest magnitudes without sorting.

The bit pattern of a non-negative float32 grows with its value, so selection works on whole numbers. A tensor that fits into the
memory limit is partitioned (numpy's vectorised quickselect), for several ranks each inside what the last one left. A larger one is
never held: a histogram of the upper 16 bits says which bin holds the k-th largest, a histogram of the lower 16 bits inside that bin
says which value it is; two passes over the slices serve any number of ranks. Both give the same thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy
import torch

INFINITE = 0x7F800000  # bit pattern of float32 infinity; NaN lies above
BINS = 1 << 16
Pieces = Callable[[], Iterable[torch.Tensor]]


class NotFinite(ValueError):
    """A magnitude is NaN or infinite."""


@dataclass(frozen=True)
class Threshold:
    """The k-th largest magnitude; `spare` of the `ties` elements equal to it are among the k largest."""

    value: float
    spare: int = 0
    ties: int = 0


EVERYTHING = Threshold(-1.0)


def kept(density: float, numel: int) -> int:
    """How many of `numel` elements a density keeps: as mergekit counts, rounded down, at least one."""
    return min(numel, max(1, int(density * numel)))


def thresholds(pieces: Pieces, ranks: Iterable[int], numel: int, resident: int) -> dict[int, Threshold]:
    """The k-th largest value for every k ≥ 1 in `ranks`, exact.

    pieces: gives the flat float32 magnitudes of a tensor of `numel` elements in pieces, the same each time it is called.
    resident: how many elements may be held at once. Raises NotFinite.
    """
    wanted = sorted(set(ranks), reverse=True)
    found = {k: EVERYTHING for k in wanted if k >= numel}
    wanted = [k for k in wanted if k < numel]
    if wanted:
        found |= _by_partition(pieces, wanted, numel) if numel <= resident else _by_histogram(pieces, wanted)
    return found


def _by_partition(pieces: Pieces, ranks: list[int], numel: int) -> dict[int, Threshold]:
    bits = numpy.empty(numel, numpy.int32)
    filled = 0
    for piece in pieces():
        bits[filled : filled + len(piece)] = _bits(piece)
        filled += len(piece)
    if bits.max() >= INFINITE:
        raise NotFinite
    found, rest = {}, bits
    for k in ranks:  # from the largest to the smallest: each lies among the elements that the one before kept
        rest.partition(len(rest) - k)  # in place
        rest = rest[len(rest) - k :]
        value = rest[0]
        found[k] = Threshold(_value(value), int(numpy.count_nonzero(rest == value)), int(numpy.count_nonzero(bits == value)))
    return found


def _by_histogram(pieces: Pieces, ranks: list[int]) -> dict[int, Threshold]:
    upper = numpy.zeros(BINS // 2, numpy.int64)
    for piece in pieces():
        # torch's bincount takes the strided 16-bit halves as they are and leaves the interpreter to other threads
        upper += torch.bincount(piece.cpu().view(torch.int16)[1::2], minlength=BINS // 2).numpy()
    if upper[INFINITE >> 16 :].any():
        raise NotFinite
    bins = {k: _bin_of(upper, k) for k in ranks}
    lower = {index: numpy.zeros(BINS, numpy.int64) for index, _ in bins.values()}
    for piece in pieces():
        unsigned = _bits(piece).view(numpy.uint32)
        for index, counts in lower.items():
            offsets = unsigned - numpy.uint32(index << 16)
            counts += numpy.bincount(offsets[offsets < BINS], minlength=BINS)
    found = {}
    for k, (index, above) in bins.items():
        low, above_low = _bin_of(lower[index], k - above)
        found[k] = Threshold(_value(index * BINS + low), k - above - above_low, int(lower[index][low]))
    return found


def _bits(piece: torch.Tensor) -> Any:
    """int32 array of the bit patterns."""
    return piece.cpu().numpy().view(numpy.int32)


def _value(bits: int | numpy.int32) -> float:
    return float(numpy.int32(bits).view(numpy.float32))


def _bin_of(counts: numpy.ndarray, k: int) -> tuple[int, int]:
    """Bin that holds the k-th largest element, and how many elements lie in the bins above it."""
    from_top = counts[::-1].cumsum()
    position = int(numpy.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above


class Taker:
    """Thins a task vector to its largest elements, slice by slice, in order; ties at the threshold go to the lowest index."""

    def __init__(self, threshold: Threshold):
        self.threshold = threshold
        self.left = threshold.spare

    def thin(self, tau: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        """The next slice with zeros where it is not among the largest.

        tau: any floating dtype; magnitude: float32, of its shape. Hardshrink zeroes |x| ≤ λ in one vectorised step, several
        times faster than a mask; magnitudes of float64 are ranked in float32 and need the mask.
        """
        at = self.threshold
        if at is EVERYTHING:
            return tau
        every = at.spare == at.ties
        if tau.dtype == torch.float64:
            thin = torch.where(magnitude >= at.value if every else magnitude > at.value, tau, torch.zeros_like(tau))
        else:
            thin = torch.nn.functional.hardshrink(tau.float(), _below(at.value) if every else at.value).to(tau.dtype)
        if not every and self.left:
            tied = torch.nonzero(magnitude.view(-1) == at.value).view(-1)[: self.left]
            thin.view(-1)[tied] = tau.view(-1)[tied]
            self.left -= len(tied)
        return thin


def _below(value: float) -> float:
    """The float32 before `value`, not below zero."""
    return float(numpy.nextafter(numpy.float32(value), numpy.float32(0)))
