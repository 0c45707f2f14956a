"""Exact selection of the largest magnitudes without sorting.

The bit pattern of a non-negative float grows with its value, so selection works on whole numbers. A task vector of a
16-bit dtype is counted: one histogram of all its 32,768 magnitudes answers every rank. One of float32 that fits into
the memory limit is partitioned (numpy's vectorised quickselect), for several ranks each inside what the last one left;
a larger one is never held: a histogram of the upper 16 bits says which bin holds the k-th largest, a histogram of the
lower 16 bits inside that bin which value it is. All give the same thresholds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
import torch

INFINITE = {
    torch.float32: 0x7F800000,
    torch.bfloat16: 0x7F80,
    torch.float16: 0x7C00,
}  # patterns of infinity; NaN lies above
BINS = 1 << 16
Array = Any  # numpy array
Pieces = Callable[[], Iterable[Array]]


class NotFinite(ValueError):
    """A magnitude is NaN or infinite."""


@dataclass(frozen=True)
class Threshold:
    """The k-th largest magnitude, the one before it in its dtype, its bit pattern.

    `spare` of the `ties` equal to it are kept.
    """

    value: float
    below: float = -1.0
    bits: int = -1
    spare: int = 0
    ties: int = 0
    reached: int = 0  # how many magnitudes are at least as large


EVERYTHING = Threshold(-1.0, reached=sys.maxsize)


class Ranking(NamedTuple):
    """What one pass over a task vector gives.

    Thresholds by rank, the energy Σ τ² of the whole task vector, and how many elements are not zero.
    """

    thresholds: dict[int, Threshold]
    energy: float
    nonzero: int


def kept(density: float, numel: int) -> int:
    """How many of `numel` elements a density keeps: as mergekit counts, rounded down, at least one."""
    return min(numel, max(1, int(density * numel)))


def ranked_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which magnitudes are compared: float64 ones in float32, others in their own."""
    return dtype if dtype in INFINITE else torch.float32


def magnitude_bits(tau: torch.Tensor) -> Array:
    """Flat bit patterns of |τ|: int16 for 16-bit dtypes, else int32."""
    wide = tau.to(ranked_in(tau.dtype)).view(-1).cpu()
    if wide.dtype == torch.float32:
        return wide.view(torch.int32).numpy() & numpy.int32(0x7FFFFFFF)
    return wide.view(torch.int16).numpy() & numpy.int16(0x7FFF)


class Counting:
    """Ranks a 16-bit task vector: one count of its 32,768 possible magnitudes answers every rank."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.counts = numpy.zeros(BINS // 2, numpy.int64)

    def see(self, bits: Array) -> None:
        """Count the next piece's `magnitude_bits`."""
        # torch's bincount takes 16-bit integers as they are and leaves the interpreter to other threads
        self.counts += torch.bincount(torch.from_numpy(bits), minlength=BINS // 2).numpy()

    def ranking(self, ranks: Iterable[int]) -> Ranking:
        """The k-th largest value for every k ≥ 1 in `ranks`, exact. Raises NotFinite."""
        if self.counts[INFINITE[self.dtype] :].any():
            raise NotFinite
        found, numel = {}, int(self.counts.sum())
        for k in ranks:
            if k < numel:
                pattern, above = _bin_of(self.counts, k)
                found[k] = _threshold(pattern, k, k - above, int(self.counts[pattern]), self.dtype)
            else:
                found[k] = EVERYTHING
        values = torch.arange(INFINITE[self.dtype], dtype=torch.int16).view(self.dtype).double().numpy()
        return Ranking(found, float((self.counts[: len(values)] * values**2).sum()), numel - int(self.counts[0]))


def rank(pieces: Pieces, ranks: Iterable[int], numel: int, resident: int) -> Ranking:
    """The k-th largest value for every k ≥ 1 in `ranks`, exact, of a task vector that is ranked in float32.

    pieces: gives the `magnitude_bits` of its `numel` elements in pieces, the same each time it is called. resident: how
    many elements may be held at once. Raises NotFinite.
    """
    wanted = sorted(set(ranks), reverse=True)
    everything = {k: EVERYTHING for k in wanted if k >= numel}
    wanted = [k for k in wanted if k < numel]
    found = _by_partition(pieces, wanted, numel) if numel <= resident else _by_histogram(pieces, wanted)
    return found._replace(thresholds=everything | found.thresholds)


def _by_partition(pieces: Pieces, ranks: list[int], numel: int) -> Ranking:
    whole = numpy.empty(numel, numpy.int32)
    filled, energy = 0, 0.0
    for bits in pieces():
        whole[filled : filled + len(bits)] = bits
        filled += len(bits)
        energy += _energy(bits)
    if whole.max() >= INFINITE[torch.float32]:
        raise NotFinite
    found, rest, nonzero = {}, whole, int(numpy.count_nonzero(whole))
    for k in ranks:  # from the largest to the smallest: each lies among the elements that the one before kept
        rest.partition(len(rest) - k)  # in place
        rest = rest[len(rest) - k :]
        pattern = int(rest[0])
        spare, ties = (int(numpy.count_nonzero(part == pattern)) for part in (rest, whole))
        found[k] = _threshold(pattern, k, spare, ties)
    return Ranking(found, energy, nonzero)


def _by_histogram(pieces: Pieces, ranks: list[int]) -> Ranking:
    upper = numpy.zeros(BINS // 2, numpy.int64)
    energy, nonzero = 0.0, 0
    for bits in pieces():
        energy += _energy(bits)
        nonzero += int(numpy.count_nonzero(bits))
        upper += torch.bincount(torch.from_numpy(bits).view(torch.int16)[1::2], minlength=BINS // 2).numpy()
    if upper[INFINITE[torch.float32] >> 16 :].any():
        raise NotFinite
    bins = {k: _bin_of(upper, k) for k in ranks}
    lower = {index: numpy.zeros(BINS, numpy.int64) for index, _ in bins.values()}
    for bits in pieces():
        for index, counts in lower.items():
            offsets = bits.view(numpy.uint32) - numpy.uint32(index << 16)
            counts += numpy.bincount(offsets[offsets < BINS], minlength=BINS)
    found = {}
    for k, (index, above) in bins.items():
        low, above_low = _bin_of(lower[index], k - above)
        pattern = index * BINS + low
        found[k] = _threshold(pattern, k, k - above - above_low, int(lower[index][low]))
    return Ranking(found, energy, nonzero)


def _energy(bits: Array) -> float:
    values = torch.from_numpy(bits).view(torch.float32)
    return float(values @ values)


def _threshold(pattern: int, k: int, spare: int, ties: int, dtype: torch.dtype = torch.float32) -> Threshold:
    patterns = torch.tensor([pattern, max(0, pattern - 1)], dtype=torch.int32 if dtype.itemsize == 4 else torch.int16)
    value, below = patterns.view(dtype).tolist()
    return Threshold(value, below, pattern, spare, ties, k - spare + ties)


def _bin_of(counts: Array, k: int) -> tuple[int, int]:
    """Bin that holds the k-th largest element, and how many elements lie in the bins above it."""
    from_top = counts[::-1].cumsum()
    position = int(numpy.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above


class Taker:
    """Thins a task vector to its largest elements, slice by slice, in order.

    Ties at the threshold go to the lowest index.
    """

    def __init__(self, threshold: Threshold):
        self.threshold = threshold
        self.left = threshold.spare

    def thin(self, tau: torch.Tensor, bits: Callable[[], Array]) -> torch.Tensor:
        """The next slice with zeros where it is not among the largest.

        tau: any floating dtype; bits: gives its `magnitude_bits`, asked for only where they are needed. Hardshrink
        zeroes |x| ≤ λ in one vectorised step, several times faster than a mask; float64 is ranked in float32 and needs
        the mask.
        """
        at = self.threshold
        if at is EVERYTHING:
            return tau
        with_ties = self.left > 0
        if tau.dtype == torch.float64:
            mask = torch.from_numpy(bits() >= at.bits if with_ties else bits() > at.bits).view(tau.shape).to(tau.device)
            thin = torch.where(mask, tau, torch.zeros_like(tau))
        else:
            thin = torch.nn.functional.hardshrink(tau, at.below if with_ties else at.value)
        if with_ties and at.spare < at.ties:
            tied = numpy.flatnonzero(bits() == at.bits)
            thin.view(-1)[torch.from_numpy(tied[self.left :])] = 0
            self.left -= min(self.left, len(tied))
        return thin
