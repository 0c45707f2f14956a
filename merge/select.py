"""Exact selection of the largest magnitudes without sorting.

The bit pattern of a non-negative float grows with its value, so selection works on whole numbers. A task vector of a
16-bit dtype is counted: one histogram of all its 32,768 magnitudes answers every rank. A wider one that fits into
the memory limit is partitioned (numpy's vectorised quickselect), for several ranks each inside what the last one left;
a larger one is never held: a histogram of the upper 16 bits says which bin holds the k-th largest, a histogram of the
next 16 bits inside that bin continues, down to the last. All give the same thresholds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
import torch

from merge.loops.tables import BINS, DIGIT, CountCall, Loop, Stored

INFINITE = {
    torch.float64: 0x7FF0000000000000,
    torch.float32: 0x7F800000,
    torch.bfloat16: 0x7F80,
    torch.float16: 0x7C00,
}  # patterns of infinity; NaN lies above
PATTERNS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of a float's bits, by its bytes
FLOATS = {4: torch.float32, 8: torch.float64}
Array = Any  # numpy array
Pieces = Callable[[], Iterable[Array]]


class NotFinite(ValueError):
    """A magnitude is NaN or infinite."""


@dataclass(frozen=True)
class Threshold:
    """The k-th largest magnitude, the one before it in its dtype, its bit pattern.

    `ties_kept` of the `ties` equal to it are kept.
    """

    value: float
    below: float = -1.0
    bits: int = -1
    ties_kept: int = 0
    ties: int = 0
    count_ge: int = 0  # how many magnitudes are at least as large


KEEP_ALL = Threshold(-1.0, count_ge=sys.maxsize)


class Ranking(NamedTuple):
    """The result of one pass over a task vector.

    Thresholds by rank, the energy Σ τ² of the whole task vector, and how many elements are not zero.
    """

    thresholds: dict[int, Threshold]
    energy: float
    nonzero: int


def count_kept(density: float, numel: int) -> int:
    """Return how many of `numel` elements a density keeps: as in mergekit, rounded down, at least one."""
    return min(numel, max(1, int(density * numel)))


def magnitude_bits(tau: torch.Tensor) -> Array:
    """Return flat bit patterns of |τ|, as integers of its width."""
    bits = tau.view(-1).cpu().view(PATTERNS[tau.dtype.itemsize]).numpy()
    return bits & numpy.iinfo(bits.dtype).max


class Counting:
    """Rank a 16-bit task vector: one count of its 32,768 possible magnitudes answers every rank.

    loops: compiled, for arithmetic in `dtype`; with them task vectors are counted as differences, else as bits.
    """

    def __init__(self, dtype: torch.dtype, loops: Mapping[str, Loop] | None = None):
        self.dtype, self.loops = dtype, loops
        self.counts = numpy.zeros(BINS // 2, numpy.int64)
        self.call = CountCall(loops["count"], self.counts) if loops is not None else None

    def update(self, bits: Array) -> None:
        """Count the next piece's `magnitude_bits`."""
        # torch's bincount takes 16-bit integers as they are and leaves the interpreter to other threads
        self.counts += torch.bincount(torch.from_numpy(bits), minlength=BINS // 2).numpy()

    def update_by_difference(self, base: Stored, model: Stored) -> None:
        """Count the next piece's task vector."""
        assert self.call is not None
        self.call.update(base, model)

    def ranking(self, ranks: Iterable[int]) -> Ranking:
        """Return the k-th largest value for every k ≥ 1 in `ranks`, exact. Raises NotFinite."""
        if self.counts[INFINITE[self.dtype] :].any():
            raise NotFinite
        thresholds, numel = {}, int(self.counts.sum())
        for k in ranks:
            if k < numel:
                pattern, above = bin_of(self.counts, k)
                thresholds[k] = threshold(pattern, k, k - above, int(self.counts[pattern]), self.dtype)
            else:
                thresholds[k] = KEEP_ALL
        values = torch.arange(INFINITE[self.dtype], dtype=torch.int16).view(self.dtype).double().numpy()
        return Ranking(thresholds, float((self.counts[: len(values)] * values**2).sum()), numel - int(self.counts[0]))


class DigitCounting:
    """Rank a float32 task vector in two passes of compiled loops: by its upper half, then inside what holds a rank."""

    def __init__(self, loops: Mapping[str, Loop]):
        self.loops = loops
        self.upper = numpy.zeros(BINS // 2, numpy.int64)
        self.lower = numpy.zeros((0, BINS), numpy.int64)
        self.rows = numpy.full(BINS // 2, -1, numpy.int16)  # of `lower`, by upper half
        self.places: dict[int, tuple[int, int]] = {}  # by rank, the upper half and how many are above
        self.call = CountCall(loops["count"], self.upper)

    def update_by_difference(self, base: Stored, model: Stored) -> None:
        """Count the next piece's task vector, in the first pass."""
        self.call.update(base, model)

    def choose(self, ranks: Iterable[int]) -> bool:
        """Set the ranks between the passes. Return whether a second pass is needed. Raises NotFinite."""
        if self.upper[INFINITE[torch.float32] >> 16 :].any():
            raise NotFinite
        self.places = {k: bin_of(self.upper, k) for k in ranks if k < self.upper.sum()}
        for prefix in {prefix for prefix, _ in self.places.values()}:
            self.rows[prefix] = self.rows.max() + 1
        self.lower = numpy.zeros((int(self.rows.max()) + 1, BINS), numpy.int64)
        self.below = CountCall(self.loops["count_below"], self.lower, self.rows)
        return bool(self.places)

    def update_below(self, base: Stored, model: Stored) -> None:
        """Count the next piece's task vector, in the second pass."""
        self.below.update(base, model)

    def ranking(self, ranks: Iterable[int]) -> Ranking:
        """Return the k-th largest value for every k ≥ 1 in `ranks`, exact."""
        thresholds = dict.fromkeys(ranks, KEEP_ALL)
        for k, (prefix, above) in self.places.items():
            counts = self.lower[self.rows[prefix]]
            digit, more = bin_of(counts, k - above)
            thresholds[k] = threshold(prefix * BINS + digit, k, k - above - more, int(counts[digit]), torch.float32)
        zeros, energy = self.call.sums.tolist()
        return Ranking(thresholds, energy, int(self.upper.sum()) - int(zeros))


def rank(pieces: Pieces, ranks: Iterable[int], numel: int, resident: int) -> Ranking:
    """Return the k-th largest value for every k ≥ 1 in `ranks`, exact, of a task vector of float32 or float64.

    pieces: gives the `magnitude_bits` of its `numel` elements in pieces, the same each time it is called. resident: how
    many elements of float32 may be held at once. Raises NotFinite.
    """
    wanted = sorted(set(ranks), reverse=True)
    everything = {k: KEEP_ALL for k in wanted if k >= numel}
    wanted = [k for k in wanted if k < numel]
    size = next(iter(pieces())).itemsize
    fits = numel * size <= resident * 4
    ranking = _by_partition(pieces, wanted, numel, size) if fits else _by_histogram(pieces, wanted, size)
    return ranking._replace(thresholds=everything | ranking.thresholds)


def _by_partition(pieces: Pieces, ranks: list[int], numel: int, size: int) -> Ranking:
    dtype = FLOATS[size]
    whole = numpy.empty(numel, f"int{8 * size}")
    filled, energy = 0, 0.0
    for bits in pieces():
        whole[filled : filled + len(bits)] = bits
        filled += len(bits)
        energy += _energy(bits)
    if whole.max() >= INFINITE[dtype]:
        raise NotFinite
    thresholds, rest, nonzero = {}, whole, int(numpy.count_nonzero(whole))
    for k in ranks:  # from the largest to the smallest: each lies among the elements that the one before kept
        rest.partition(len(rest) - k)  # in place
        rest = rest[len(rest) - k :]
        pattern = int(rest[0])
        ties_kept, ties = (int(numpy.count_nonzero(part == pattern)) for part in (rest, whole))
        thresholds[k] = threshold(pattern, k, ties_kept, ties, dtype)
    return Ranking(thresholds, energy, nonzero)


def _by_histogram(pieces: Pieces, ranks: list[int], size: int) -> Ranking:
    dtype, digits = FLOATS[size], size // 2  # of 16 bits
    upper = numpy.zeros(BINS // 2, numpy.int64)
    energy, nonzero = 0.0, 0
    for bits in pieces():
        energy += _energy(bits)
        nonzero += int(numpy.count_nonzero(bits))
        leading = torch.from_numpy(bits).view(torch.int16)[digits - 1 :: digits]
        upper += torch.bincount(leading, minlength=BINS // 2).numpy()
    if upper[INFINITE[dtype] >> (8 * size - 16) :].any():
        raise NotFinite
    places = {k: (*bin_of(upper, k), 0) for k in ranks}  # leading digits, how many are above, how many are equal
    for left in range(digits - 1, 0, -1):  # digits not looked at yet
        lower = {prefix: numpy.zeros(BINS, numpy.int64) for prefix, _, _ in places.values()}
        for bits in pieces():
            unsigned = bits.view(f"uint{8 * size}")
            for prefix, counts in lower.items():
                offsets = unsigned - unsigned.dtype.type(prefix << 16 * left)
                inside = offsets[offsets < 1 << 16 * left] >> 16 * (left - 1)
                counts += numpy.bincount(inside.astype(numpy.int64), minlength=BINS)
        for k, (prefix, above, _) in places.items():
            digit, more = bin_of(lower[prefix], k - above)
            places[k] = (prefix * BINS + digit, above + more, int(lower[prefix][digit]))
    thresholds = {k: threshold(pattern, k, k - above, ties, dtype) for k, (pattern, above, ties) in places.items()}
    return Ranking(thresholds, energy, nonzero)


def _energy(bits: Array) -> float:
    values = torch.from_numpy(bits).view(FLOATS[bits.itemsize])
    energy = float(values @ values)
    return energy if is_accurate(energy, len(bits)) else float(values.double().square().sum())


def is_accurate(energy: float, numel: int) -> bool:
    """Tell whether Σ τ² is right although squares were summed in float32: none overflowed, and few are subnormal."""
    return numel * 2.0**-100 < energy < math.inf


def threshold(pattern: int, k: int, ties_kept: int, ties: int, dtype: torch.dtype) -> Threshold:
    patterns = torch.tensor([pattern, max(0, pattern - 1)], dtype=PATTERNS[dtype.itemsize])
    value, below = patterns.view(dtype).tolist()
    return Threshold(value, below, pattern, ties_kept, ties, k - ties_kept + ties)


def bin_of(counts: Array, k: int) -> tuple[int, int]:
    """Return the bin of the k-th largest element, and how many elements are in the bins above it."""
    from_top = counts[::-1].cumsum()
    position = int(numpy.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above


class TopK:
    """Keep the largest elements of a task vector, slice by slice, in order.

    Ties at the threshold go to the lowest index.
    """

    def __init__(self, threshold: Threshold):
        self.threshold = threshold
        self.left = threshold.ties_kept

    def take(self, tau: torch.Tensor, bits: Callable[[], Array]) -> torch.Tensor:
        """Return the next slice with zeros where it is not among the largest.

        bits: gives its `magnitude_bits`, asked for only where they are needed. Hardshrink zeroes |x| ≤ λ in one
        vectorised step, several times faster than a mask.
        """
        at = self.threshold
        if at is KEEP_ALL:
            return tau
        with_ties = self.left > 0
        thin = torch.nn.functional.hardshrink(tau, at.below if with_ties else at.value)
        if with_ties and at.ties_kept < at.ties:
            tied = _places_of_ties(tau, at, bits)
            thin.view(-1)[tied[self.left :]] = 0
            self.left -= min(self.left, len(tied))
        return thin


def _places_of_ties(tau: torch.Tensor, at: Threshold, bits: Callable[[], Array]) -> torch.Tensor:
    """Return flat indices, in order, of what equals the threshold, found on τ's device."""
    if tau.device.type == "cpu":
        return torch.from_numpy(numpy.flatnonzero(bits() == at.bits))
    return (tau.reshape(-1).abs() == at.value).nonzero().view(-1)


class DeviceCounting:
    """Rank a task vector of `numel` elements on its device. After a pass, `another` tells whether it needs one more."""

    def __init__(self, dtype: torch.dtype, ranks: Iterable[int], numel: int):
        self.dtype, self.numel, self.ranks = dtype, numel, list(ranks)
        self.left = dtype.itemsize // 2 - 1  # digits that are not looked at yet, after this pass
        self.first = True
        self.counts: dict[int, torch.Tensor] = {0: torch.zeros(BINS, dtype=torch.int64)}  # by leading digits
        self.places = {k: (0, 0, 0) for k in self.ranks if k < numel}  # leading digits, how many above, how many equal
        self.energy: torch.Tensor | float = 0.0
        self.nonzero: torch.Tensor | int = 0

    def update(self, tau: torch.Tensor) -> None:
        """Count the next slice."""
        whole = PATTERNS[self.dtype.itemsize]
        patterns = tau.reshape(-1).view(whole) & torch.iinfo(whole).max
        if self.first and self.dtype.itemsize > 2:
            self.energy = self.energy + tau.double().square().sum()
            self.nonzero = self.nonzero + tau.count_nonzero()
        for prefix, counts in self.counts.items():
            inside = patterns if self.first else patterns[patterns >> DIGIT * (self.left + 1) == prefix]
            digits = (inside >> DIGIT * self.left) & (BINS - 1) if self.dtype.itemsize > 2 else inside
            self.counts[prefix] = counts.to(tau.device) + torch.bincount(digits, minlength=BINS)

    def another(self) -> bool:
        """End a pass; return whether another is needed. Raises NotFinite."""
        found = {prefix: counts.cpu().numpy() for prefix, counts in self.counts.items()}
        if self.first:
            if found[0][INFINITE[self.dtype] >> DIGIT * self.left :].any():
                raise NotFinite
            self.upper = found[0]
        self.first = False
        for k, (prefix, above, _) in self.places.items():
            digit, more = bin_of(found[prefix], k - above)
            self.places[k] = (prefix * BINS + digit, above + more, int(found[prefix][digit]))
        self.left -= 1
        self.counts = {prefix: torch.zeros(BINS, dtype=torch.int64) for prefix, _, _ in self.places.values()}
        return self.left >= 0 and bool(self.places)

    def ranking(self) -> Ranking:
        """Return the k-th largest value for every rank k ≥ 1, exact."""
        if self.dtype.itemsize == 2:
            counting = Counting(self.dtype)
            counting.counts += self.upper[: BINS // 2]
            return counting.ranking(self.ranks)
        thresholds = dict.fromkeys(self.ranks, KEEP_ALL)
        for k, (pattern, above, ties) in self.places.items():
            thresholds[k] = threshold(pattern, k, k - above, ties, self.dtype)
        return Ranking(thresholds, float(self.energy), int(self.nonzero))
