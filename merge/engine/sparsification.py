"""Sparsify task vectors: which of their values stay, by one class per way (see methods.Sparsifier).

Magnitudes are ranked over the whole tensor in a pass before the merge (`Ranking`). SCE (Wan et al. 2024) ranks the
variance of the models' task vectors instead, and Arcee Fusion an importance: |τ| times the row's Kullback-Leibler
divergence of softmax(θ) from softmax(θ0). Both are ranked like magnitudes, so memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from merge import select
from merge.arithmetic import Consensus, keep_line, keep_probabilities
from merge.engine.outputs import Parent
from merge.engine.pieces import Job, Piece, Quantity
from merge.loops.tables import KINDS, Drawn, Loop, draw_slice
from merge.methods import IMPORTANCE, MAGNITUDE, MAGNITUDE_OUTLIERS, MAGPRUNE, RANDOM, VARIANCE, Sparsifier

if TYPE_CHECKING:
    from merge.engine.tensor_recipe import ModelTerm, TaskVectorMerge

FEW = 4  # elements among which the lower quartile is the least one, which no rank names
QUARTILES = (0.25, 0.5, 0.75)


class Sparsification:
    """Keep every value; the base of classes that keep fewer. `tensor` is the merge of one tensor that uses it."""

    is_drawn = False
    has_loop = True  # whether merge/loops merges what it keeps
    needs_sums = False  # `gather` has to see every slice before the merge

    def ranks(self, density: float, gamma: float, numel: int) -> tuple[int, ...]:
        """Return the ranks of one model's magnitudes whose thresholds have to be known."""
        return ()

    def rankings(self, tensor: TaskVectorMerge, job: Job) -> Mapping[Quantity, set[int]]:
        """Return what has to be ranked besides magnitudes of task vectors, and the ranks to find."""
        return {}

    def gather(self, tensor: TaskVectorMerge, piece: Piece) -> None:
        """Add a slice to sums over the whole tensor."""

    def keeps_all(self, tensor: TaskVectorMerge, term: ModelTerm) -> bool:
        return term.density >= 1

    def sparsify(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> torch.Tensor:
        """Return a model's task vector with zeros where it is trimmed or dropped, if it does not keep all."""
        return piece.tau(term.parent, tensor.dtype)

    def expected(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> float | torch.Tensor:
        """Return the probability of each value to stay."""
        return term.density

    def consensus(self, tensor: TaskVectorMerge) -> Consensus:
        """Return how sparsified task vectors are combined."""
        return tensor.consensus

    def loop(self, tensor: TaskVectorMerge, job: Job) -> Loop | None:
        """Return the compiled loop that draws, if there is one."""
        return None


class Magnitude(Sparsification):
    def ranks(self, density: float, gamma: float, numel: int) -> tuple[int, ...]:
        return () if density >= 1 else (select.count_kept(density, numel),)

    def sparsify(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> torch.Tensor:
        return piece.largest(term.parent, tensor.dtype, term.ranks[0])


class MagnitudeOutliers(Magnitude):
    def ranks(self, density: float, gamma: float, numel: int) -> tuple[int, ...]:
        """Return how many of the largest to keep, then how many of these to drop, counted as mergekit does.

        If the outliers would reduce the fraction that is kept, fewer outliers are dropped.
        """
        if density >= 1:
            return ()
        middle = int(density * numel)
        bottom = max(0, numel - middle - int(gamma * numel))
        return (numel - bottom, numel - bottom - middle)

    def sparsify(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> torch.Tensor:
        kept = super().sparsify(tensor, term, piece)
        return kept - piece.largest(term.parent, tensor.dtype, term.ranks[1]) if term.ranks[1] > 0 else kept


class Random(Sparsification):
    is_drawn = True

    def sparsify(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> torch.Tensor:
        tau = piece.tau(term.parent, tensor.dtype)
        return tau * self.mask(tensor, term, piece).to(tau.dtype)

    def mask(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> torch.Tensor:
        """Return which values the draws keep, as 0 and 1, uint8."""
        key = (tensor.recipe.spec.sparsify, tensor.recipe.seed, term, tensor.dtype)
        return piece.mask(key, lambda: self._draw(tensor, term, piece), tensor.needs_sums)

    def _draw(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> torch.Tensor:
        """Return which values the draws keep, bool or uint8."""
        if self.loop(tensor, piece.job) is not None:
            return self.drawn(tensor, term, piece).mask
        return piece.uniform(tensor.recipe.seed, term.name) < self.expected(tensor, term, piece)

    def line(self, term: ModelTerm, columns: int) -> tuple[float, float]:
        """Return the least probability to stay, and what a rank adds to it."""
        return term.density, 0.0

    def needs_chances(self, tensor: TaskVectorMerge) -> bool:
        return False

    def loop(self, tensor: TaskVectorMerge, job: Job) -> Loop | None:
        loops = (job.loops or {}).get(KINDS.get(tensor.dtype, -1))
        return None if loops is None else loops["draw"]

    def drawn(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> Drawn:
        """Return what the compiled loop draws in a slice, which happens once."""
        loop = self.loop(tensor, piece.job)
        assert loop is not None
        chances = self.needs_chances(tensor)
        key = (term, tensor.dtype, tensor.recipe.seed, tensor.recipe.spec.sparsify, chances)
        if key not in piece.drawn:
            columns = piece.job.columns
            base, model = (piece.stored(parent, tensor.dtype) for parent in (tensor.base, term.parent))
            stream = piece.stream(tensor.recipe.seed, term.name)
            piece.drawn[key] = draw_slice(loop, base, model, columns, stream, *self.line(term, columns), chances)
        return piece.drawn[key]


class Magprune(Random):
    def line(self, term: ModelTerm, columns: int) -> tuple[float, float]:
        return keep_line(columns, term.density, term.epsilon)

    def needs_chances(self, tensor: TaskVectorMerge) -> bool:
        return tensor.recipe.rescale == "expectation"

    def expected(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> float | torch.Tensor:
        if self.needs_chances(tensor) and self.loop(tensor, piece.job) is not None:
            chances = self.drawn(tensor, term, piece).chances
            assert chances is not None
            return chances
        return keep_probabilities(piece.ranks(term.parent, tensor.dtype), term.density, term.epsilon)


@dataclass(frozen=True)
class Variance:
    """The variance of some parents' task vectors, over parents (not the sample's: divided by their number)."""

    parents: tuple[Parent, ...]

    def of(self, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """Return it in the compute dtype, [rows, columns]."""
        return torch.stack([piece.tau(parent, dtype) for parent in self.parents]).var(dim=0, unbiased=False)


class ByVariance(Sparsification):
    """SCE: keep the same parameters of all models, and weigh each model by the energy of what is kept."""

    has_loop = False
    needs_sums = True

    def rankings(self, tensor: TaskVectorMerge, job: Job) -> Mapping[Quantity, set[int]]:
        """Return the rank of the least variance that is kept; one pass over the parents counts those above zero."""
        if tensor.topk >= 1:
            return {}
        quantity = self._quantity(tensor)
        nonzero = sum(int(piece.measure(quantity, tensor.dtype).count_nonzero()) for piece in job.pieces())
        return {quantity: {self._count(nonzero, tensor.topk)} - {0}}

    def gather(self, tensor: TaskVectorMerge, piece: Piece) -> None:
        for term in tensor.terms:
            energy = float(tensor.kept(term, piece).double().square().sum())
            tensor.sums[term.name] = tensor.sums.get(term.name, 0.0) + energy

    def keeps_all(self, tensor: TaskVectorMerge, term: ModelTerm) -> bool:
        return tensor.topk >= 1

    def sparsify(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> torch.Tensor:
        quantity = self._quantity(tensor)
        rank = self._count(piece.job.selection[quantity, tensor.dtype].nonzero, tensor.topk)
        tau = piece.tau(term.parent, tensor.dtype)
        return tau * (piece.largest(quantity, tensor.dtype, rank) != 0).to(tau.dtype)

    def consensus(self, tensor: TaskVectorMerge) -> Consensus:
        """Weigh each model by its mean τ² over the sum of these, rounded as mergekit rounds them."""
        means = [tensor.sums[term.name] / tensor.output.numel for term in tensor.terms]
        shares = torch.tensor(means, dtype=tensor.dtype)
        energy = float(shares.sum())
        weights = shares / energy if energy >= 1e-6 else torch.ones_like(shares) / len(shares)
        return replace(tensor.consensus, weights=tuple(weights.tolist()), floor=1e-6)

    def _quantity(self, tensor: TaskVectorMerge) -> Variance:
        return Variance(tuple(term.parent for term in tensor.terms))

    def _count(self, nonzero: int, topk: float) -> int:
        """Return how many parameters a fraction of those with a variance is, rounded as mergekit rounds it."""
        return int(torch.tensor(nonzero) * topk)


@dataclass(frozen=True)
class Importance:
    """The importance of a parent's task vector; rounding can make it negative, so each sign is ranked by itself."""

    parent: Parent
    sign: int = 1

    def of(self, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """Return what of it has this sign, as a magnitude [rows, columns] in the compute dtype."""
        return (self.sign * importance(piece, self.parent, dtype)).clamp_(min=0)


class ByImportance(Sparsification):
    """Arcee Fusion: keep what has an importance of at least median + 1.5 interquartile ranges."""

    has_loop = False

    def rankings(self, tensor: TaskVectorMerge, job: Job) -> Mapping[Quantity, set[int]]:
        """Return the ranks of the quartiles: counted from below, and so from above among magnitudes."""
        numel, parent = tensor.output.numel, tensor.terms[0].parent
        if numel <= FEW:
            return {}
        places = [int(quartile * (numel - 1)) for quartile in QUARTILES]
        return {
            Importance(parent): {numel - place for place in places},
            Importance(parent, -1): {place + 1 for place in places},
        }

    def keeps_all(self, tensor: TaskVectorMerge, term: ModelTerm) -> bool:
        return False

    def sparsify(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> torch.Tensor:
        scores = importance(piece, term.parent, tensor.dtype)
        low, middle, high = torch.tensor(_quartiles(piece, term.parent, tensor.dtype, scores), dtype=tensor.dtype)
        kept = scores >= (middle + 1.5 * (high - low)).to(scores.device)
        return piece.tau(term.parent, tensor.dtype) * kept.to(tensor.dtype)


def importance(piece: Piece, parent: Parent, dtype: torch.dtype) -> torch.Tensor:
    """Compute |τ| · KL(softmax θ, softmax θ0), rows along the last dimension, with mergekit's operations."""
    theta, base = piece.theta(parent, dtype), piece.theta(piece.job.output.leader, dtype)
    p, q = (weights.softmax(dim=-1) + 1e-8 for weights in (theta, base))
    return piece.tau(parent, dtype).abs() * (p * torch.log(p / q)).sum(dim=-1, keepdim=True)


def _quartiles(piece: Piece, parent: Parent, dtype: torch.dtype, scores: torch.Tensor) -> Sequence[float]:
    numel = piece.job.output.numel
    places = [int(quartile * (numel - 1)) for quartile in QUARTILES]
    if numel <= FEW:
        ordered: list[float] = scores.flatten().sort().values.tolist()
        return [ordered[place] for place in places]
    above, below = (piece.job.selection[Importance(parent, sign), dtype].thresholds for sign in (1, -1))
    positive = [above[numel - place].value for place in places]
    return [value or -below[place + 1].value for value, place in zip(positive, places, strict=True)]


KEEP_ALL = Sparsification()
SPARSIFICATIONS: dict[Sparsifier | None, Sparsification] = {  # a new way is a class, and an entry here
    None: KEEP_ALL,
    MAGNITUDE: Magnitude(),
    MAGNITUDE_OUTLIERS: MagnitudeOutliers(),
    RANDOM: Random(),
    MAGPRUNE: Magprune(),
    VARIANCE: ByVariance(),
    IMPORTANCE: ByImportance(),
}
