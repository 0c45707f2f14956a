"""Selection by a quantity of several models at once: what SCE and Arcee Fusion keep of a task vector.

SCE (Wan et al. 2024) keeps the parameters in which the models differ most: the largest by the variance of their task
vectors. Arcee Fusion keeps those of an importance, |τ| times the row's Kullback-Leibler divergence of softmax(θ) from
softmax(θ0), of at least median + 1.5 interquartile ranges. Both are ranked like magnitudes, so memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from merge.engine.outputs import Parent
from merge.stream.pieces import Job, Piece

FEW = 4  # elements among which the lower quartile is the least one, which no rank names
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Variance:
    """Of the task vectors of some parents, over parents (not the sample's: divided by their number)."""

    parents: tuple[Parent, ...]

    def of(self, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """[rows, columns], in the compute dtype."""
        return torch.stack([piece.tau(parent, dtype) for parent in self.parents]).var(dim=0, unbiased=False)

    def count(self, nonzero: int, topk: float) -> int:
        """How many parameters a share of those with a variance is, rounded as mergekit rounds it."""
        return int(torch.tensor(nonzero) * topk)

    def ranks(self, job: Job, dtype: torch.dtype, topk: float) -> set[int]:
        """The rank of the least variance that is kept; one pass over the parents counts what is not zero."""
        nonzero = sum(int(piece.measure(self, dtype).count_nonzero()) for piece in job.pieces())
        return {self.count(nonzero, topk)} - {0}

    def mask(self, piece: Piece, dtype: torch.dtype, topk: float) -> torch.Tensor:
        """Where task vectors are kept, as 0 and 1 in their dtype."""
        rank = self.count(piece.job.selection[self, dtype].nonzero, topk)
        return (piece.largest(self, dtype, rank) != 0).to(dtype)


@dataclass(frozen=True)
class Importance:
    """Of a parent's task vector by Arcee Fusion; rounding can make it negative, so each sign is ranked by itself."""

    parent: Parent
    sign: int = 1

    def of(self, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """What of it has this sign, as a magnitude [rows, columns] in the compute dtype."""
        return (self.sign * importance(piece, self.parent, dtype)).clamp_(min=0)


def importance_ranks(parent: Parent, numel: int) -> dict[Variance | Importance, set[int]]:
    """The ranks of the quartiles: counted from below, and so from above among magnitudes."""
    if numel <= FEW:
        return {}
    places = [int(quartile * (numel - 1)) for quartile in QUARTILES]
    return {
        Importance(parent): {numel - place for place in places},
        Importance(parent, -1): {place + 1 for place in places},
    }


def importance_mask(piece: Piece, parent: Parent, dtype: torch.dtype) -> torch.Tensor:
    """Where a task vector is kept, as 0 and 1 in its dtype."""
    scores = importance(piece, parent, dtype)
    low, middle, high = torch.tensor(_quartiles(piece, parent, dtype, scores), dtype=dtype)
    return (scores >= (middle + 1.5 * (high - low)).to(scores.device)).to(dtype)


def _quartiles(piece: Piece, parent: Parent, dtype: torch.dtype, scores: torch.Tensor) -> Sequence[float]:
    numel = piece.job.output.numel
    places = [int(quartile * (numel - 1)) for quartile in QUARTILES]
    if numel <= FEW:
        ordered: list[float] = scores.flatten().sort().values.tolist()
        return [ordered[place] for place in places]
    above, below = (piece.job.selection[Importance(parent, sign), dtype].thresholds for sign in (1, -1))
    positive = [above[numel - place].value for place in places]
    return [value or -below[place + 1].value for value, place in zip(positive, places, strict=True)]


def importance(piece: Piece, parent: Parent, dtype: torch.dtype) -> torch.Tensor:
    """|τ| · KL(softmax θ, softmax θ0), rows along the last dimension; operations and roundings are mergekit's."""
    theta, base = piece.theta(parent, dtype), piece.theta(piece.job.output.leader, dtype)
    p, q = (weights.softmax(dim=-1) + 1e-8 for weights in (theta, base))
    return piece.tau(parent, dtype).abs() * (p * torch.log(p / q)).sum(dim=-1, keepdim=True)
