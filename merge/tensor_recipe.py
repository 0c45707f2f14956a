"""A recipe's settings for one tensor, and its merge of one slice."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch

from merge import methods
from merge.checkpoint import torch_dtype
from merge.methods import Consensus
from merge.pieces import Piece
from merge.plan import Output, Parent, Plan, parent_of
from merge.recipe import Recipe
from merge.select import kept
from merge.settings import resolve


@dataclass(frozen=True)
class Use:
    """One model's part in one tensor. ranks: how many of the largest magnitudes to keep, then (band) to drop again."""

    name: str
    parent: Parent
    weight: float
    density: float
    epsilon: float
    ranks: tuple[int, ...]


@dataclass
class TensorRecipe:
    """What a recipe does to one tensor."""

    recipe: Recipe
    output: Output
    base: Parent
    uses: list[Use]
    dtype: torch.dtype
    consensus: Consensus
    t: float
    sums: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe, plan: Plan, output: Output) -> TensorRecipe:
        """Resolve rules and gradients for `output`."""
        name, layers, spec = output.name, plan.layers, recipe.spec
        uses = []
        for model in recipe.models:
            weight, density, gamma, epsilon = (
                resolve(getattr(model, key), name, layers, key=f"models.{model.name}.{key}") for key in ("weight", "density", "gamma", "epsilon")
            )
            ranks = _ranks(spec.sparsify, density, gamma, output.numel)
            uses.append(Use(model.name, parent_of(model), weight, density, epsilon, ranks))
        consensus = Consensus(
            weights=tuple(use.weight for use in uses),
            lambda_=resolve(recipe.lambda_, name, layers, key="lambda"),
            normalize=recipe.normalize,
            elect=spec.elect,
            slack=recipe.slack,
            protected=tuple(use.name in recipe.protect for use in uses),
            weighted=recipe.election == "weighted",
        )
        dtype = _compute_dtype(recipe, plan, output)
        return cls(recipe, output, plan.leader, uses, dtype, consensus, resolve(recipe.t, name, layers, key="t"))

    @property
    def needs_sums(self) -> bool:
        """Whether `gather` has to see every slice before `merge`."""
        return self.recipe.method == "slerp" or (self.recipe.rescale == "l1" and any(use.density < 1 for use in self.uses))

    def gather(self, piece: Piece) -> None:
        """Add a slice to the sums over the whole tensor, in float64."""
        if self.recipe.method == "slerp":
            a = piece.theta(self.base, self.dtype).double().view(-1)
            b = piece.theta(self.uses[0].parent, self.dtype).double().view(-1)
            for key, x, y in (("aa", a, a), ("bb", b, b), ("ab", a, b)):
                self.sums[key] = self.sums.get(key, 0.0) + float(x @ y)
            return
        for use in self.uses:
            mask = self._mask(use, piece)
            if mask is not None:
                magnitude = piece.magnitude(use.parent, self.dtype)
                for key, part in ((f"{use.name}.all", magnitude), (f"{use.name}.kept", magnitude * mask)):
                    self.sums[key] = self.sums.get(key, 0.0) + float(part.sum(dtype=torch.float64))

    def merge(self, piece: Piece) -> tuple[torch.Tensor, list[torch.Tensor | None], list[torch.Tensor] | None]:
        """Merged slice in the compute dtype; per model the mask of what was kept (None: all); per model the survivors."""
        method = self.recipe.method
        if method == "linear":
            thetas = [self._wide(use.parent, piece) for use in self.uses]
            merged = methods.linear(thetas, self.consensus.weights, self.consensus.normalize)
            return merged.to(self.dtype), [None] * len(self.uses), None
        if method == "slerp":
            a, b = methods.slerp_coefficients(self.t, math.sqrt(self.sums["aa"]), math.sqrt(self.sums["bb"]), self.sums["ab"])
            merged = self._wide(self.base, piece) * a + self._wide(self.uses[0].parent, piece) * b
            return merged.to(self.dtype), [None], None
        masks = [self._mask(use, piece) for use in self.uses]
        if self._is_the_model:
            return piece.theta(self.uses[0].parent, self.dtype), masks, None
        taus = [self._thinned(use, mask, piece) for use, mask in zip(self.uses, masks, strict=True)]
        merged, survivors = methods.merge_taus(piece.theta(self.base, self.dtype), taus, self.consensus)
        return merged, masks, survivors

    def _wide(self, parent: Parent, piece: Piece) -> torch.Tensor:
        """Weights brought to the compute dtype, then to at least float32: averages are not added up in 16 bits."""
        return piece.theta(parent, self.dtype).to(torch.promote_types(self.dtype, torch.float32))

    @property
    def _is_the_model(self) -> bool:
        """One whole task vector on its base is the model itself: θ0 + (θ − θ0) would round twice.

        Not with compute_dtype `inputs`, which means mergekit's arithmetic, roundings included.
        """
        only = self.uses[0]
        scale = self.consensus.lambda_ * (1.0 if self.consensus.normalize and only.weight != 0 else only.weight)
        return len(self.uses) == 1 and only.density == 1 and not only.ranks and scale == 1 and self.recipe.compute_dtype != "inputs"

    def _mask(self, use: Use, piece: Piece) -> torch.Tensor | None:
        """Which elements of a model's task vector stay; None for all."""
        kind = self.recipe.spec.sparsify
        if kind is None or use.density >= 1:
            return None
        if kind == "random":
            return piece.uniform(self.recipe.seed, use.name) < use.density
        if kind == "ranked":
            return piece.uniform(self.recipe.seed, use.name) < self._probabilities(use, piece)
        mask = piece.largest(use.parent, self.dtype, use.ranks[0])
        if kind == "band" and use.ranks[1] > 0:
            mask = mask & ~piece.largest(use.parent, self.dtype, use.ranks[1])
        return mask

    def _thinned(self, use: Use, mask: torch.Tensor | None, piece: Piece) -> torch.Tensor:
        """The task vector with zeros where the mask says so, rescaled as the recipe says."""
        tau = piece.tau(use.parent, self.dtype)
        if mask is None:
            return tau
        thin = tau * mask
        if self.recipe.rescale == "l1":
            before, after = self.sums[f"{use.name}.all"], self.sums[f"{use.name}.kept"]
            return thin * (before / after) if min(before, after) >= 1e-7 else thin
        if self.recipe.rescale == "expectation":
            if self.recipe.spec.sparsify == "ranked":
                return (thin / self._probabilities(use, piece)).to(tau.dtype)
            return thin / use.density
        return thin

    def _probabilities(self, use: Use, piece: Piece) -> torch.Tensor:
        return methods.keep_probabilities(piece.magnitude(use.parent, self.dtype), use.density, use.epsilon)


def _ranks(sparsify: str | None, density: float, gamma: float, numel: int) -> tuple[int, ...]:
    if density >= 1 or sparsify not in ("largest", "band"):
        return ()
    if sparsify == "largest":
        return (kept(density, numel),)
    # mergekit's counts: where the outliers would eat into the share kept, fewer outliers are dropped.
    middle = int(density * numel)
    bottom = max(0, numel - middle - int(gamma * numel))
    return (numel - bottom, numel - bottom - middle)


def _compute_dtype(recipe: Recipe, plan: Plan, output: Output) -> torch.dtype:
    """The dtype of the arithmetic; `inputs`: what the parents' dtypes promote to, as mergekit has it."""
    if recipe.compute_dtype != "inputs":
        return getattr(torch, recipe.compute_dtype)
    parents = [parent_of(model) for model in recipe.models] + ([plan.leader] if recipe.base is not None else [])
    codes = [plan.parents[parent].tensors[output.sources[parent]].dtype for parent in parents]
    return functools.reduce(torch.promote_types, map(torch_dtype, codes))


def out_dtype(recipe: Recipe, plan: Plan, output: Output) -> torch.dtype:
    """The dtype that the result is rounded to, once, to nearest even; buffers keep their own."""
    own = torch_dtype(plan.parents[plan.leader].tensors[output.sources[plan.leader]].dtype)
    if not output.floating or recipe.out_dtype == "base":
        return own
    return _compute_dtype(recipe, plan, output) if recipe.out_dtype == "compute" else getattr(torch, recipe.out_dtype)
