"""A recipe's settings for one tensor, and its merge of one slice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from merge import methods
from merge.election import Scope, Slack
from merge.engine.outputs import Output, Parent
from merge.engine.plan import Plan, compute_dtype, out_dtype
from merge.loops.calls import KINDS, Drawn, draw_slice
from merge.loops.machine_code import Loop
from merge.method_table import IMPORTANCE, MAGNITUDE_OUTLIERS, MAGPRUNE, RANDOM, VARIANCE
from merge.methods import Consensus
from merge.per_tensor import resolve
from merge.recipe import Recipe
from merge.span import Gram
from merge.stream.joint_selection import Importance, Variance, importance_mask, importance_ranks
from merge.stream.model_term import ModelTerm, model_term
from merge.stream.pieces import SLICE, Job, Piece


@dataclass
class Agreement:
    """What one slice's task vectors became, before λ. Lists run over models.

    kept: τ with zeros where trimmed or dropped; taus: the same rescaled; tau: τ_m; survivors: see methods.merge_taus.
    """

    kept: list[torch.Tensor]
    taus: list[torch.Tensor]
    tau: torch.Tensor
    survivors: list[torch.Tensor] | None


@dataclass
class TensorRecipe:
    """What a recipe does to one tensor. lambda_: the product of the recipe's λ and lambda_factor."""

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
    gram: Gram | None = None
    sums: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe, plan: Plan, output: Output, lambda_factor: float = 1.0) -> TensorRecipe:
        """Resolve rules and gradients for `output`. lambda_factor: see engine.fixed_norms."""
        recipe = recipe.at(output.slice)
        terms = [model_term(recipe, model, output) for model in recipe.models]
        consensus = Consensus(
            weights=tuple(term.weight for term in terms),
            normalize=recipe.normalize,
            elect=recipe.spec.elect,
            slack=Slack(
                recipe.slack,
                tuple(term.name in recipe.protect for term in terms),
                recipe.slack_form,
                both=recipe.on_slack == "both",
            ),
            weighted=recipe.election == "weighted",
        )
        dtype = compute_dtype(recipe, plan, output)
        lambda_ = lambda_factor * resolve(recipe.lambda_, output.name, output.depth, key="lambda")
        t = resolve(recipe.t, output.name, output.depth, key="t")
        topk = resolve(recipe.select_topk, output.name, output.depth, key="select_topk")
        out = out_dtype(recipe, plan, output)
        return cls(recipe, output, output.leader, terms, dtype, consensus, lambda_, t, topk, out, lambda_factor)

    @property
    def needs_sums(self) -> bool:
        """Whether `gather` has to see every slice before `merge`."""
        return (
            self.recipe.spec.combine in ("arc", "span")
            or self.recipe.spec.sparsify == VARIANCE
            or (self.recipe.rescale == "l1" and any(term.density < 1 for term in self.terms))
        )

    def gather(self, piece: Piece) -> None:
        """Add a slice to the sums over the whole tensor, in float64."""
        if self.recipe.spec.combine == "arc":
            a = piece.theta(self.base, self.dtype).double().view(-1)
            b = piece.theta(self.terms[0].parent, self.dtype).double().view(-1)
            for key, x, y in (("aa", a, a), ("bb", b, b), ("ab", a, b)):
                self.sums[key] = self.sums.get(key, 0.0) + float(x @ y)
            return
        if self.recipe.spec.combine == "span":
            vectors = torch.stack([self._vector(term, piece).double().view(-1) for term in self.terms])
            gram = (vectors @ vectors.T).cpu().numpy()
            self.gram = gram if self.gram is None else self.gram + gram
            return
        if self.recipe.spec.sparsify == VARIANCE:
            for i, term in enumerate(self.terms):
                self.sums[f"{i}"] = self.sums.get(f"{i}", 0.0) + float(self._kept(term, piece).double().square().sum())
            return
        loop = self._drawing_loop(piece.job)
        self._gather_magnitudes(piece, loop)
        if loop is not None and piece.stop == self.output.numel and not all(map(self._is_certain, self.sums.values())):
            self.sums.clear()
            for each in piece.job.pieces():
                self._gather_magnitudes(each, None)

    def _gather_magnitudes(self, piece: Piece, loop: Loop | None) -> None:
        """Add Σ|τ| of a slice, and that of what is kept, where something is trimmed or dropped."""
        for term in self.terms:
            if term.density >= 1:
                continue
            if loop is not None:
                self.drawn_mask(term, piece)  # which the merge will need again
                before, after = self._drawn_by_loop(loop, term, piece).sums
            else:
                parts = piece.tau(term.parent, self.dtype), self._kept(term, piece)
                before, after = (float(part.abs().sum(dtype=torch.float64)) for part in parts)
            for part, value in (("all", before), ("kept", after)):
                key = f"{term.name}.{part}"
                self.sums[key] = self.sums.get(key, 0.0) + value

    def _is_certain(self, total: float) -> bool:
        """Whether a sum of magnitudes is rounded to one and the same number in whichever order it is added up."""
        numel, columns = self.output.numel, self.output.shape[-1] if self.output.shape else 1
        additions = numel // columns + columns + numel // SLICE
        error = 2 * additions * 2.0**-53
        below, above = torch.tensor([total * (1 - error), total * (1 + error)], dtype=self.dtype)
        return bool(below == above)

    @cached_property
    def signature(self) -> tuple[Any, ...]:
        """Recipes with equal signatures have the same `Agreement`: they differ in λ, or in nothing."""
        recipe = self.recipe
        return (recipe.spec, recipe.rescale, recipe.seed, self.dtype, tuple(self.terms), self.consensus, self.topk)

    def agree(self, piece: Piece) -> Agreement | None:
        """Thin the task vectors and merge them; None for methods that have none (linear, slerp)."""
        if self.recipe.spec.combine != "task_vectors":
            return None
        kept = [self._kept(term, piece) for term in self.terms]
        taus = [self._rescaled(term, part, piece) for term, part in zip(self.terms, kept, strict=True)]
        if self.recipe.spec.consensus is not None:
            return Agreement(kept, taus, *self.recipe.spec.consensus(taus, self.consensus))
        how = self.consensus
        if self.recipe.spec.sparsify == VARIANCE:
            how = replace(how, weights=self._energy_shares(), floor=1e-6)
        how = replace(how, slack=self.slack(piece.job))
        return Agreement(kept, taus, *methods.merge_taus(taus, how, self._scope(piece)))

    def joint_ranks(self, job: Job) -> Mapping[Variance | Importance, set[int]]:
        """What has to be ranked beside task vectors."""
        if self.recipe.spec.sparsify == IMPORTANCE:
            return importance_ranks(self.terms[0].parent, self.output.numel)
        if self.recipe.spec.sparsify == VARIANCE and self.topk < 1:
            return {self._variance: self._variance.ranks(job, self.dtype, self.topk)}
        return {}

    @property
    def _variance(self) -> Variance:
        return Variance(tuple(term.parent for term in self.terms))

    def _energy_shares(self) -> tuple[float, ...]:
        """SCE's weights: each model's mean τ² over the sum of these, rounded as mergekit rounds them."""
        means = torch.tensor([self.sums[f"{i}"] / self.output.numel for i in range(len(self.terms))], dtype=self.dtype)
        energy = float(means.sum())
        return tuple((means / energy if energy >= 1e-6 else torch.ones_like(means) / len(means)).tolist())

    def slack(self, job: Job) -> Slack:
        """The recipe's slack, in the tensor's unit where it is measured."""
        measured = any(term.measured for term in self.terms)
        return replace(self.consensus.slack, unit=self.protected_rms(job)) if measured else self.consensus.slack

    def protected_rms(self, job: Job) -> float:
        """√(Σ τ² / n) over the whole tensor and the protected models, each with what its votes are multiplied with."""
        energies = (
            job.selection[term.parent, self.dtype].energy * (term.weight**2 if self.consensus.weighted else 1.0)
            for term in self.terms
            if term.measured
        )
        return math.sqrt(math.fsum(energies) / self.output.numel)

    def _scope(self, piece: Piece) -> Scope | None:
        """Where slack protects: among the largest of the whole task vector, those that tie with the last included."""
        if not any(term.scope for term in self.terms):
            return None
        return [self._largest(term, piece) if term.scope else None for term in self.terms]

    def _largest(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        edge = piece.job.selection[term.parent, self.dtype].thresholds[term.scope].value
        return piece.tau(term.parent, self.dtype).abs() >= edge

    def squared_norms(self, piece: Piece) -> tuple[float, float]:
        """Σ (λ·τ_m)² and Σ τ² of the model that `norm` refers to, over one slice, in float64."""
        agreement = self.agree(piece)
        reference = next(term for term in self.terms if term.name == self.recipe.norm_reference)
        assert agreement is not None
        step, tau = (
            float(part.double().square().sum()) for part in (agreement.tau, piece.tau(reference.parent, self.dtype))
        )
        return self.lambda_**2 * step, tau

    def merge(self, piece: Piece, agreement: Agreement | None) -> torch.Tensor:
        """The merged slice, in the compute dtype."""
        if agreement is not None:
            if self.is_the_model:
                return piece.theta(self.terms[0].parent, self.dtype)
            return methods.moved(piece.theta(self.base, self.dtype), agreement.tau, self.lambda_)
        if self.recipe.spec.combine == "average":
            thetas = [self._wide(term.parent, piece) for term in self.terms]
            return methods.linear(thetas, self.consensus.weights, self.consensus.normalize).to(self.dtype)
        if self.recipe.spec.combine == "copy":
            return methods.scaled(piece.theta(self.terms[0].parent, self.dtype), self.terms[0].scale)
        if self.recipe.spec.combine == "near":
            theta = piece.theta(self.terms[0].parent, self.dtype)
            return methods.near(piece.theta(self.base, self.dtype), theta, self.t)
        if self.recipe.spec.combine == "span":
            return self._in_span(piece)
        a, b = methods.slerp_coefficients(
            self.t, math.sqrt(self.sums["aa"]), math.sqrt(self.sums["bb"]), self.sums["ab"]
        )
        return (self._wide(self.base, piece) * a + self._wide(self.terms[0].parent, piece) * b).to(self.dtype)

    def _vector(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        """What span methods combine: the task vector where there is a base, else the weights."""
        return (piece.tau if self._based else piece.theta)(term.parent, self.dtype)

    @property
    def _based(self) -> bool:
        return self.recipe.base is not None and self.recipe.spec.base_use != "unused"

    def _in_span(self, piece: Piece) -> torch.Tensor:
        wide = torch.promote_types(self.dtype, torch.float32)
        theta = piece.theta(self.base, self.dtype)
        out = theta.to(wide, copy=True) if self._based else torch.zeros_like(theta, dtype=wide)
        for term, coefficient in zip(self.terms, self._coefficients, strict=True):
            out.add_(self._vector(term, piece).to(wide), alpha=coefficient)
        return out.to(self.dtype)

    @cached_property
    def _coefficients(self) -> list[float]:
        coefficients = self.recipe.spec.span
        assert coefficients is not None and self.gram is not None
        return coefficients(self.gram, self.consensus.weights, self.consensus.normalize)

    def _wide(self, parent: Parent, piece: Piece) -> torch.Tensor:
        """Weights brought to the compute dtype, then to at least float32: averages are not added up in 16 bits."""
        return piece.theta(parent, self.dtype).to(torch.promote_types(self.dtype, torch.float32))

    @property
    def is_the_model(self) -> bool:
        """One whole task vector on its base is the model itself: θ0 + (θ − θ0) would round twice."""
        only = self.terms[0]
        scale = self.lambda_ * (1.0 if self.consensus.normalize and only.weight != 0 else only.weight)
        whole = only.density == 1 and not only.random_signs and self.topk == 1
        whole = whole and self.recipe.spec.sparsify != IMPORTANCE
        return self.recipe.exact and len(self.terms) == 1 and whole and scale == 1

    def _kept(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        """The task vector with zeros where it is trimmed or dropped, its signs drawn where the recipe says so."""
        thinned = self._thinned(term, piece)
        if not term.random_signs:
            return thinned
        draws = piece.uniform(self.recipe.seed, f"{term.name}: signs")
        return thinned * torch.copysign(torch.ones((), device=draws.device), draws - 0.5).to(thinned.dtype)

    def _thinned(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        sparsifier = self.recipe.spec.sparsify
        tau = piece.tau(term.parent, self.dtype)
        if sparsifier == IMPORTANCE:
            return tau * importance_mask(piece, term.parent, self.dtype)
        if sparsifier == VARIANCE and self.topk < 1:
            return tau * self._variance.mask(piece, self.dtype, self.topk)
        if sparsifier is None or term.density >= 1:
            return tau
        if sparsifier in (RANDOM, MAGPRUNE):
            return tau * self.drawn_mask(term, piece).to(tau.dtype)
        kept = piece.largest(term.parent, self.dtype, term.ranks[0])
        if sparsifier == MAGNITUDE_OUTLIERS and term.ranks[1] > 0:
            return kept - piece.largest(term.parent, self.dtype, term.ranks[1])
        return kept

    def drawn_mask(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        """Which values the draws keep, as 0 and 1, uint8."""
        key = (self.recipe.spec.sparsify, self.recipe.seed, term, self.dtype)
        return piece.mask(key, lambda: self._drawn(term, piece), self.needs_sums)

    def _drawn(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        """Which values the draws keep, bool or uint8."""
        if (loop := self._drawing_loop(piece.job)) is not None:
            return self._drawn_by_loop(loop, term, piece).mask
        draws = piece.uniform(self.recipe.seed, term.name)
        return draws < (term.density if self.recipe.spec.sparsify == RANDOM else self.chances(term, piece))

    def _rescaled(self, term: ModelTerm, kept: torch.Tensor, piece: Piece) -> torch.Tensor:
        """Make up, as the recipe says, for what trimming or dropping took away."""
        if self.recipe.rescale == "none" or term.density >= 1:
            return kept
        if self.recipe.rescale == "l1":
            return methods.scaled(kept, self.l1_factor(term))
        if self.recipe.spec.sparsify == MAGPRUNE:
            return (kept / self.chances(term, piece)).to(kept.dtype)
        return kept / term.density

    def l1_factor(self, term: ModelTerm) -> float:
        """Σ|τ| over Σ|τ| of what was kept, in the compute dtype, as mergekit rounds them; its sums are less exact."""
        before, after = (torch.tensor(self.sums[f"{term.name}.{part}"], dtype=self.dtype) for part in ("all", "kept"))
        return float(before / after) if min(before, after) >= 1e-7 else 1.0

    def chances(self, term: ModelTerm, piece: Piece) -> torch.Tensor:
        """DELLA's keep probabilities of one model's values."""
        if self._needs_chances and (loop := self._drawing_loop(piece.job)) is not None:
            chances = self._drawn_by_loop(loop, term, piece).chances
            assert chances is not None
            return chances
        return methods.keep_probabilities(piece.ranks(term.parent, self.dtype), term.density, term.epsilon)

    @property
    def _needs_chances(self) -> bool:
        return self.recipe.spec.sparsify == MAGPRUNE and self.recipe.rescale == "expectation"

    def _drawing_loop(self, job: Job) -> Loop | None:
        """The compiled loop that draws, where there is one."""
        if self.recipe.spec.sparsify not in (RANDOM, MAGPRUNE):
            return None
        loops = (job.loops or {}).get(KINDS.get(self.dtype, -1))
        return None if loops is None else loops["draw"]

    def _drawn_by_loop(self, loop: Loop, term: ModelTerm, piece: Piece) -> Drawn:
        key = (term, self.dtype, self.recipe.seed, self.recipe.spec.sparsify, self._needs_chances)
        if key not in piece.drawn:
            columns = piece.job.columns
            low, step = term.density, 0.0
            if self.recipe.spec.sparsify == MAGPRUNE:
                low, step = methods.keep_line(columns, term.density, term.epsilon)
            base, model = (piece.stored(parent, self.dtype) for parent in (self.base, term.parent))
            stream = piece.stream(self.recipe.seed, term.name)
            piece.drawn[key] = draw_slice(loop, base, model, columns, stream, low, step, self._needs_chances)
        return piece.drawn[key]


class Observer(Protocol):
    """Sees what became of each slice's task vectors in one recipe: the audit.

    levels: shares of largest magnitudes whose thresholds it needs.
    """

    @property
    def levels(self) -> tuple[float, ...]: ...

    def see(self, tensor: TensorRecipe, piece: Piece, agreement: Any) -> None: ...
