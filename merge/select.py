"""Exact selection of the largest magnitudes without sorting, over data that comes in pieces.

The bit pattern of a non-negative float32 grows with its value, so the k-th largest can be found digit by digit: a histogram of
the upper 16 bits says which bin holds it, a histogram of the lower 16 bits inside that bin says which value it is. Two passes,
512 KB of counters, any number of densities from the same first pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

BINS = 1 << 16
INFINITE = 0x7F80  # upper half of the bit pattern of float32 infinity; NaN lies above
Pieces = Callable[[], Iterable[torch.Tensor]]


class NotFinite(ValueError):
    """A magnitude is NaN or infinite."""


@dataclass(frozen=True)
class Threshold:
    """The k-th largest magnitude; `spare` of the `ties` elements equal to it are among the k largest."""

    value: float
    spare: int
    ties: int


EVERYTHING = Threshold(-1.0, 0, 0)


def kept(density: float, numel: int) -> int:
    """How many of `numel` elements a density keeps: as mergekit counts, rounded down, at least one."""
    return min(numel, max(1, int(density * numel)))


def thresholds(pieces: Pieces, ranks: Iterable[int], numel: int) -> dict[int, Threshold]:
    """The k-th largest value for every k in `ranks`, exact.

    pieces: gives the float32 magnitudes in pieces of any size, the same each time it is called. Raises NotFinite.
    """
    wanted = sorted(set(ranks))
    result = {k: EVERYTHING for k in wanted if k >= numel}
    wanted = [k for k in wanted if k < numel]
    if not wanted:
        return result
    upper = torch.zeros(BINS // 2, dtype=torch.int64)
    for piece in pieces():
        upper += torch.bincount(piece.view(torch.int16)[1::2], minlength=BINS // 2).cpu()
    if int(upper[INFINITE:].sum()):
        raise NotFinite
    bins = {k: _bin_of(upper, k) for k in wanted}
    lower = {index: torch.zeros(BINS, dtype=torch.int64) for index, _ in bins.values()}
    for piece in pieces():
        bits = piece.view(torch.int32)
        for index, counts in lower.items():
            inside = bits[piece.view(torch.int16)[1::2] == index]
            counts += torch.bincount(inside & (BINS - 1), minlength=BINS).cpu()
    for k, (index, above) in bins.items():
        low, above_low = _bin_of(lower[index], k - above)
        value = torch.tensor(index * BINS + low, dtype=torch.int32).view(torch.float32).item()
        result[k] = Threshold(value, k - above - above_low, int(lower[index][low]))
    return result


def _bin_of(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """Bin that holds the k-th largest element, and how many elements lie in the bins above it."""
    from_top = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above


class Taker:
    """Marks the largest elements piece by piece, in order; ties at the threshold go to the lowest index."""

    def __init__(self, threshold: Threshold):
        self.threshold = threshold
        self.left = threshold.spare

    def mask(self, magnitude: torch.Tensor) -> torch.Tensor:
        """bool mask of the next piece, of its shape."""
        at = self.threshold
        if at.spare == at.ties:
            return magnitude >= at.value
        mask = magnitude > at.value
        if self.left:
            tied = torch.nonzero(magnitude.view(-1) == at.value).view(-1)[: self.left]
            mask.view(-1)[tied] = True
            self.left -= len(tied)
        return mask
