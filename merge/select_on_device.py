"""Exact selection where the task vector lies on a GPU: histograms are made there, and only they come to the host.

The thresholds are those of merge/select.py. A pass counts 16 bits of the magnitudes' patterns: all of them in 16-bit
arithmetic, else the upper 16 first, then the next 16 inside the bins that hold a rank. A pass moves the weights to the
device once, whatever is asked, and 256 to 512 KB of counts for each task vector and bin back.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from merge.loops.tables import BINS, DIGIT
from merge.select import EVERYTHING, INFINITE, PATTERNS, Counting, NotFinite, Ranking, bin_of, threshold


class DeviceCounting:
    """Ranks one task vector of `numel` elements. After every pass `another` says whether it needs one more."""

    def __init__(self, dtype: torch.dtype, ranks: Iterable[int], numel: int):
        self.dtype, self.numel, self.ranks = dtype, numel, list(ranks)
        self.left = dtype.itemsize // 2 - 1  # digits that are not looked at yet, after this pass
        self.first = True
        self.counts: dict[int, torch.Tensor] = {0: torch.zeros(BINS, dtype=torch.int64)}  # by leading digits
        self.places = {k: (0, 0, 0) for k in self.ranks if k < numel}  # leading digits, how many above, how many equal
        self.energy: torch.Tensor | float = 0.0
        self.nonzero: torch.Tensor | int = 0

    def see(self, tau: torch.Tensor) -> None:
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
        """End a pass; whether there has to be another. Raises NotFinite."""
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
        """The k-th largest value for every rank k ≥ 1, exact."""
        if self.dtype.itemsize == 2:
            counting = Counting(self.dtype)
            counting.counts += self.upper[: BINS // 2]
            return counting.ranking(self.ranks)
        found = dict.fromkeys(self.ranks, EVERYTHING)
        for k, (pattern, above, ties) in self.places.items():
            found[k] = threshold(pattern, k, k - above, ties, self.dtype)
        return Ranking(found, float(self.energy), int(self.nonzero))
