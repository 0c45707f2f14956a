"""A recipe's settings for one tensor, and its merge slice by slice: one class per way to combine models.

`TensorRecipe.of` resolves rules and gradients and picks the class of the method's combination. Recipes of one tensor
that differ in λ alone share what happens before it (`MergedDelta`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from merge import arithmetic, select
from merge.arithmetic import Consensus, Scope, Slack
from merge.engine.outputs import Output, Parent, parent_of
from merge.engine.pieces import SLICE, Job, Piece, Quantity
from merge.engine.plan import Plan, compute_dtype, out_dtype
from merge.engine.sparsification import SPARSIFICATIONS, Random, Sparsification
from merge.methods import AVERAGE, NEARSWAP, PASSTHROUGH, SLERP, SPAN, TASK_VECTORS, Combination
from merge.per_tensor import resolve
from merge.recipe import ModelRef, Recipe
from merge.span import Gram


@dataclass(frozen=True)
class ModelTerm:
    """One model's part in one tensor.

    ranks: which ranks of its magnitudes sparsification needs. scope: among how many of the largest slack protects it, 0
    for all. measured: whether the tensor's rms is needed. scale: factor of its weights (passthrough).
    """

    name: str
    parent: Parent
    weight: float
    density: float
    epsilon: float
    ranks: tuple[int, ...]
    scale: float = 1.0
    random_signs: bool = False
    scope: int = 0
    measured: bool = False


def model_term(recipe: Recipe, model: ModelRef, output: Output) -> ModelTerm:
    """Resolve rules and gradients of one model for `output`."""
    name = output.name_in(parent_of(model))
    weight, density, gamma, epsilon, scale = (
        resolve(getattr(model, key), name, output.depth, key=f"models.{model.name}.{key}")
        for key in ("weight", "density", "gamma", "epsilon", "scale")
    )
    is_protected = recipe.slack > 0 and model.name in recipe.protect
    return ModelTerm(
        model.name,
        parent_of(model),
        weight,
        density,
        epsilon,
        SPARSIFICATIONS[recipe.spec.sparsify].ranks(density, gamma, output.numel),
        scale,
        model.random_signs,
        scope=select.count_kept(recipe.slack_share, output.numel)
        if is_protected and recipe.slack_scope == "top"
        else 0,
        measured=is_protected and recipe.slack_scale == "rms",
    )


@dataclass
class MergedDelta:
    """What one slice's task vectors became, before λ. Lists run over models.

    kept: τ with zeros where trimmed or dropped; taus: the same rescaled; tau: τ_m; survivors: see merge_taus.
    """

    kept: list[torch.Tensor]
    taus: list[torch.Tensor]
    tau: torch.Tensor
    survivors: list[torch.Tensor] | None


@dataclass
class TensorRecipe:
    """What a recipe does to one tensor; the base of one class per combination.

    lambda_: the product of the recipe's λ and lambda_factor. sums: over the whole tensor, by name, in float64.
    """

    recipe: Recipe
    output: Output
    base: Parent
    terms: list[ModelTerm]
    dtype: torch.dtype
    consensus: Consensus
    lambda_: float
    t: float
    topk: float
    out_dtype: torch.dtype
    lambda_factor: float = 1.0
    sums: dict[str, float] = field(default_factory=dict)

    needs_sums = False  # whether `gather` has to see every slice before `merge`
    is_the_model = False  # whether the result is one model, unchanged

    @staticmethod
    def of(recipe: Recipe, plan: Plan, output: Output, lambda_factor: float = 1.0) -> TensorRecipe:
        """Resolve rules and gradients for `output`. lambda_factor: see passes.fixed_norms."""
        recipe = recipe.at(output.slice)
        terms = [model_term(recipe, model, output) for model in recipe.models]
        slack = Slack(
            recipe.slack,
            tuple(term.name in recipe.protect for term in terms),
            recipe.slack_form,
            both=recipe.on_slack == "both",
        )
        return COMBINATIONS[recipe.spec.combine](
            recipe,
            output,
            output.leader,
            terms,
            dtype=compute_dtype(recipe, plan, output),
            consensus=Consensus(
                weights=tuple(term.weight for term in terms),
                normalize=recipe.normalize,
                elect=recipe.spec.elect,
                slack=slack,
                weighted=recipe.election == "weighted",
            ),
            lambda_=lambda_factor * resolve(recipe.lambda_, output.name, output.depth, key="lambda"),
            t=resolve(recipe.t, output.name, output.depth, key="t"),
            topk=resolve(recipe.select_topk, output.name, output.depth, key="select_topk"),
            out_dtype=out_dtype(recipe, plan, output),
            lambda_factor=lambda_factor,
        )

    @cached_property
    def signature(self) -> tuple[Any, ...]:
        """Recipes with equal signatures have the same `MergedDelta`: they differ in λ, or in nothing."""
        recipe = self.recipe
        return (recipe.spec, recipe.rescale, recipe.seed, self.dtype, tuple(self.terms), self.consensus, self.topk)

    def rankings(self, job: Job) -> Mapping[Quantity, set[int]]:
        """Return what has to be ranked besides task vectors, and the ranks to find."""
        return {}

    def gather(self, piece: Piece) -> None:
        """Add a slice to the sums over the whole tensor."""

    def merge_deltas(self, piece: Piece) -> MergedDelta | None:
        """Sparsify the task vectors and merge them; None for methods that have none (linear, slerp)."""
        return None

    def merge(self, piece: Piece, delta: MergedDelta | None) -> torch.Tensor:
        """Return the merged slice, in the compute dtype. delta: of a recipe with the same signature."""
        raise NotImplementedError

    def _add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def _theta(self, piece: Piece) -> torch.Tensor:
        """Return the only model's weights, in the compute dtype."""
        return piece.theta(self.terms[0].parent, self.dtype)

    def _wide(self, parent: Parent, piece: Piece) -> torch.Tensor:
        """Return weights in the compute dtype, then in at least float32: averages are not summed in 16 bits."""
        return piece.theta(parent, self.dtype).to(torch.promote_types(self.dtype, torch.float32))


class AverageMerge(TensorRecipe):
    """The weighted average of the models' weights."""

    def merge(self, piece: Piece, delta: MergedDelta | None) -> torch.Tensor:
        thetas = [self._wide(term.parent, piece) for term in self.terms]
        return arithmetic.average(thetas, self.consensus.weights, self.consensus.normalize).to(self.dtype)


class PassthroughMerge(TensorRecipe):
    """One model's weights times a number."""

    def merge(self, piece: Piece, delta: MergedDelta | None) -> torch.Tensor:
        return arithmetic.scaled(self._theta(piece), self.terms[0].scale)


class NearswapMerge(TensorRecipe):
    """One model's weights where they are near the base."""

    def merge(self, piece: Piece, delta: MergedDelta | None) -> torch.Tensor:
        return arithmetic.nearswap(piece.theta(self.base, self.dtype), self._theta(piece), self.t)


class SlerpMerge(TensorRecipe):
    """A point on the arc from the base to one model."""

    needs_sums = True

    def gather(self, piece: Piece) -> None:
        a = piece.theta(self.base, self.dtype).double().view(-1)
        b = self._theta(piece).double().view(-1)
        for name, x, y in (("aa", a, a), ("bb", b, b), ("ab", a, b)):
            self._add(name, float(x @ y))

    def merge(self, piece: Piece, delta: MergedDelta | None) -> torch.Tensor:
        norms = math.sqrt(self.sums["aa"]), math.sqrt(self.sums["bb"])
        a, b = arithmetic.slerp_coefficients(self.t, *norms, self.sums["ab"])
        return (self._wide(self.base, piece) * a + self._wide(self.terms[0].parent, piece) * b).to(self.dtype)


class SpanMerge(TensorRecipe):
    """Σ c·x with coefficients c from the Gram matrix; x: task vectors if there is a base, else weights."""

    needs_sums = True
    gram: Gram | None = None

    def gather(self, piece: Piece) -> None:
        vectors = torch.stack([self._vector(term, piece).double().view(-1) for term in self.terms])
        gram = (vectors @ vectors.T).cpu().numpy()
        self.gram = gram if self.gram is None else self.gram + gram

    def merge(self, piece: Piece, delta: MergedDelta | None) -> torch.Tensor:
        wide = torch.promote_types(self.dtype, torch.float32)
        theta = piece.theta(self.base, self.dtype)
        out = theta.to(wide, copy=True) if self._has_base else torch.zeros_like(theta, dtype=wide)
        for term, coefficient in zip(self.terms, self._coefficients, strict=True):
            out.add_(self._vector(term, piece).to(wide), alpha=coefficient)
        return out.to(self.dtype)

    def _vector(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        return (piece.tau if self._has_base else piece.theta)(term.parent, self.dtype)

    @property
    def _has_base(self) -> bool:
        return self.recipe.base is not None and self.recipe.spec.base_use != "unused"

    @cached_property
    def _coefficients(self) -> list[float]:
        coefficients = self.recipe.spec.span
        assert coefficients is not None and self.gram is not None
        return coefficients(self.gram, self.consensus.weights, self.consensus.normalize)


class TaskVectorMerge(TensorRecipe):
    """θ0 + λ·τ_m: sparsified and rescaled task vectors, combined with or without a sign election."""

    @cached_property
    def sparsification(self) -> Sparsification:
        return SPARSIFICATIONS[self.recipe.spec.sparsify]

    @cached_property
    def needs_sums(self) -> bool:  # type: ignore[override]
        """Tell whether `gather` has to see every slice before `merge`."""
        return self.sparsification.needs_sums or (
            self.recipe.rescale == "l1" and any(term.density < 1 for term in self.terms)
        )

    @cached_property
    def is_the_model(self) -> bool:  # type: ignore[override]
        """Tell whether one complete task vector is added to its base: θ0 + (θ − θ0) would round twice."""
        only = self.terms[0]
        scale = self.lambda_ * (1.0 if self.consensus.normalize and only.weight != 0 else only.weight)
        is_complete = self.sparsification.keeps_all(self, only) and not only.random_signs
        return self.recipe.exact and len(self.terms) == 1 and is_complete and scale == 1

    def rankings(self, job: Job) -> Mapping[Quantity, set[int]]:
        return self.sparsification.rankings(self, job)

    def gather(self, piece: Piece) -> None:
        self.sparsification.gather(self, piece)
        if self.recipe.rescale != "l1":
            return
        loop = self.sparsification.loop(self, piece.job)
        self._gather_magnitudes(piece, with_loop=loop is not None)
        is_last = piece.stop == self.output.numel
        if loop is not None and is_last and not all(map(self._is_certain, self.sums.values())):
            self.sums.clear()
            for each in piece.job.pieces():
                self._gather_magnitudes(each, with_loop=False)

    def _gather_magnitudes(self, piece: Piece, with_loop: bool) -> None:
        """Add Σ|τ| of a slice, and that of what is kept, if something is trimmed or dropped."""
        for term in self.terms:
            if term.density >= 1:
                continue
            if with_loop:
                assert isinstance(self.sparsification, Random)
                self.sparsification.mask(self, term, piece)  # which the merge will need again
                sums: Sequence[float] = self.sparsification.drawn(self, term, piece).sums
            else:
                parts = piece.tau(term.parent, self.dtype), self.kept(term, piece)
                sums = [float(part.abs().sum(dtype=torch.float64)) for part in parts]
            for part, value in zip(("all", "kept"), sums, strict=True):
                self._add(f"{term.name}.{part}", value)

    def _is_certain(self, total: float) -> bool:
        """Tell whether a sum of magnitudes is rounded to the same number in whichever order it is added up."""
        numel, columns = self.output.numel, self.output.shape[-1] if self.output.shape else 1
        additions = numel // columns + columns + numel // SLICE
        error = 2 * additions * 2.0**-53
        below, above = torch.tensor([total * (1 - error), total * (1 + error)], dtype=self.dtype)
        return bool(below == above)

    def merge_deltas(self, piece: Piece) -> MergedDelta:
        kept = [self.kept(term, piece) for term in self.terms]
        taus = [self._rescaled(term, part, piece) for term, part in zip(self.terms, kept, strict=True)]
        if self.recipe.spec.consensus is not None:
            return MergedDelta(kept, taus, *self.recipe.spec.consensus(taus, self.consensus))
        how = replace(self.sparsification.consensus(self), slack=self.slack(piece.job))
        return MergedDelta(kept, taus, *arithmetic.merge_taus(taus, how, self._scope(piece)))

    def merge(self, piece: Piece, delta: MergedDelta | None) -> torch.Tensor:
        assert delta is not None
        if self.is_the_model:
            return self._theta(piece)
        return arithmetic.apply_task_vector(piece.theta(self.base, self.dtype), delta.tau, self.lambda_)

    def kept(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        """Return the task vector with zeros where it is trimmed or dropped, and with random signs if these are set."""
        if self.sparsification.keeps_all(self, term):
            kept = piece.tau(term.parent, self.dtype)
        else:
            kept = self.sparsification.sparsify(self, term, piece)
        if not term.random_signs:
            return kept
        draws = piece.uniform(self.recipe.seed, f"{term.name}: signs")
        return kept * torch.copysign(torch.ones((), device=draws.device), draws - 0.5).to(kept.dtype)

    def _rescaled(self, term: ModelTerm, kept: torch.Tensor, piece: Piece) -> torch.Tensor:
        """Compensate, as the recipe says, for what trimming or dropping took away."""
        if self.recipe.rescale == "none" or term.density >= 1:
            return kept
        if self.recipe.rescale == "l1":
            return arithmetic.scaled(kept, self.l1_factor(term))
        return (kept / self.sparsification.expected(self, term, piece)).to(kept.dtype)

    def l1_factor(self, term: ModelTerm) -> float:
        """Return Σ|τ| over Σ|τ| of what was kept, in the compute dtype, rounded as by mergekit (with exacter sums)."""
        before, after = (torch.tensor(self.sums[f"{term.name}.{part}"], dtype=self.dtype) for part in ("all", "kept"))
        return float(before / after) if min(before, after) >= 1e-7 else 1.0

    def slack(self, job: Job) -> Slack:
        """Return the recipe's slack, in the tensor's unit if it is measured."""
        measured = any(term.measured for term in self.terms)
        return replace(self.consensus.slack, unit=self._protected_rms(job)) if measured else self.consensus.slack

    def _protected_rms(self, job: Job) -> float:
        """Compute √(Σ τ² / n) over the tensor and the protected models, each with the factor of its votes."""
        energies = (
            job.selection[term.parent, self.dtype].energy * (term.weight**2 if self.consensus.weighted else 1.0)
            for term in self.terms
            if term.measured
        )
        return math.sqrt(math.fsum(energies) / self.output.numel)

    def _scope(self, piece: Piece) -> Scope | None:
        """Return where slack protects: the largest values of the task vector, with those that tie with the last."""
        if not any(term.scope for term in self.terms):
            return None
        return [self._largest(term, piece) if term.scope else None for term in self.terms]

    def _largest(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        edge = piece.job.selection[term.parent, self.dtype].thresholds[term.scope].value
        return piece.tau(term.parent, self.dtype).abs() >= edge

    def squared_norms(self, piece: Piece) -> tuple[float, float]:
        """Return Σ (λ·τ_m)² and Σ τ² of the model that `norm` refers to, over one slice, in float64."""
        reference = next(term for term in self.terms if term.name == self.recipe.norm_reference)
        step, tau = (
            float(part.double().square().sum())
            for part in (self.merge_deltas(piece).tau, piece.tau(reference.parent, self.dtype))
        )
        return self.lambda_**2 * step, tau


COMBINATIONS: dict[Combination, type[TensorRecipe]] = {  # a new way to combine models is a class, and an entry here
    TASK_VECTORS: TaskVectorMerge,
    AVERAGE: AverageMerge,
    PASSTHROUGH: PassthroughMerge,
    NEARSWAP: NearswapMerge,
    SLERP: SlerpMerge,
    SPAN: SpanMerge,
}


class Observer(Protocol):
    """Observes what became of each slice's task vectors in one recipe: the audit.

    levels: fractions of largest magnitudes whose thresholds it needs.
    """

    @property
    def levels(self) -> tuple[float, ...]: ...

    def observe(self, tensor: TensorRecipe, piece: Piece, delta: Any) -> None: ...
