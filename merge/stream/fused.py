"""Merges of one tensor in compiled loops (merge/kernels.py), where these have the method.

They give today's results bit for bit: merge/methods.py defines them, and merges where there is no kernel (other
methods, other devices, no numba).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy
import torch

from merge.compiled import compiled_kernels
from merge.method_table import MAGNITUDE, MAGNITUDE_OUTLIERS, MAGPRUNE, RANDOM
from merge.methods import rounded
from merge.recipe import Recipe
from merge.select import Array, kept
from merge.stream.dtypes import compute_dtype
from merge.stream.model_term import ModelTerm
from merge.stream.pieces import Job, Piece
from merge.stream.tensor_plan import Plan
from merge.stream.tensor_recipe import Observer, TensorRecipe

SPARSIFIERS = (None, MAGNITUDE, MAGNITUDE_OUTLIERS, RANDOM, MAGPRUNE)
WORTH = 1 << 28  # parameters of a model; at 2^27, loading numba takes the time that its loops save
WHERE_FASTER = True  # leave to tensors what they merge as fast (docs/development/benchmarks.md); tests compare all


@dataclass
class FusedAgreement:
    """What one slice's task vectors became: τ_m, flat, and what an audit counts of it (see kernels.Tallies)."""

    tau: Array
    counts: list[tuple[list[list[int]], tuple[int, int]]]
    energies: list[float | None]  # by model, Σ τ² of what entered the merge; None: all of it
    energy: float  # Σ τ_m²


class Fused:
    """One recipe's merge of one tensor. levels: what shares of largest magnitudes an audit counts, none without one."""

    def __init__(self, tensor: TensorRecipe, job: Job, kernels: ModuleType, levels: Sequence[float]):
        self.tensor, self.job, self.kernels, self.levels = tensor, job, kernels, levels
        self.wide = numpy.float64 if tensor.dtype == torch.float64 else numpy.float32
        self.kind = {torch.bfloat16: kernels.BFLOAT16, torch.float16: kernels.FLOAT16}.get(tensor.dtype, kernels.EXACT)
        self.left = numpy.zeros((len(tensor.terms), 2), numpy.int64)

    def agree(self, piece: Piece) -> FusedAgreement | None:
        """Thin the task vectors and merge them; ask for every slice, in order. None for averages."""
        tensor, terms = self.tensor, self.tensor.terms
        if tensor.recipe.spec.combine == "average":
            return None
        if piece.start == 0:
            self.left = self._trim.left.copy()
        thetas, rows = piece.wide([tensor.base, *(term.parent for term in terms)], tensor.dtype)
        seen = self._tallies()
        tau = numpy.empty(thetas.shape[1], self.wide)
        trim = self._trim._replace(left=self.left)
        self.kernels.merge_taus(thetas, rows, self.kind, trim, self._rescale(piece), self._combine, seen, tau)
        counts = [
            (rows_of_counts.tolist(), (int(turned[0]), int(turned[1])))
            for rows_of_counts, turned in zip(seen.counts, seen.turned, strict=True)
        ]
        energies = [
            None if self._whole(term) and not tensor.consensus.elect else float(energy)
            for term, energy in zip(terms, seen.energies[1:], strict=True)
        ]
        return FusedAgreement(tau, counts, energies, float(seen.energies[0]))

    def merge(self, tensor: TensorRecipe, piece: Piece, agreement: FusedAgreement | None) -> torch.Tensor:
        """The merged slice of a recipe with the same agreement: values of the compute dtype, in float32 at least."""
        parents = [term.parent for term in tensor.terms]
        if agreement is None:
            thetas, rows = piece.wide(parents, tensor.dtype)
            weights = torch.tensor(tensor.consensus.weights, dtype=getattr(torch, self.wide.__name__))
            divisor = self.wide(weights.sum() if tensor.consensus.normalize else 1)
            out = numpy.empty(thetas.shape[1], self.wide)
            self.kernels.average(thetas, rows, weights.numpy(), divisor, self.kind, out)
        elif tensor.is_the_model:
            return piece.theta(parents[0], tensor.dtype)
        else:
            thetas, (row,) = piece.wide([tensor.base], tensor.dtype)
            out = numpy.empty(thetas.shape[1], self.wide)
            self.kernels.move(thetas[row], agreement.tau, self.wide(tensor.lambda_), self.kind, out)
        return torch.from_numpy(out).view(-1, piece.job.columns)

    def _whole(self, term: ModelTerm) -> bool:
        """Whether nothing of a task vector is thinned."""
        if self.tensor.recipe.spec.sparsify in (RANDOM, MAGPRUNE):
            return term.density >= 1
        edges = self._trim.edges[self.tensor.terms.index(term)]
        return bool(edges[0] < 0 and edges[1] == math.inf)

    @cached_property
    def _trim(self) -> Any:
        """Ranks as edges of magnitude: of what is kept, and of what is dropped of it again."""
        edges, below = (numpy.full((len(self.tensor.terms), 2), (-1, math.inf), self.wide) for _ in range(2))
        left = numpy.zeros((len(self.tensor.terms), 2), numpy.int64)
        if self.tensor.recipe.spec.sparsify in (MAGNITUDE, MAGNITUDE_OUTLIERS):
            for m, term in enumerate(self.tensor.terms):
                for column, rank in enumerate(term.ranks):
                    if rank > 0:
                        at = self.job.selection[term.parent, self.tensor.dtype].thresholds[rank]
                        edges[m, column], below[m, column], left[m, column] = at.value, at.below, at.spare
                    else:
                        edges[m, column] = below[m, column] = math.inf
        return self.kernels.Trim(edges, below, left)

    def _rescale(self, piece: Piece) -> Any:
        """Masks of what is drawn, and what makes up for what trimming or dropping took."""
        tensor, terms = self.tensor, self.tensor.terms
        masks, probabilities = numpy.zeros((0, 0), numpy.uint8), numpy.zeros((0, 0), numpy.float32)
        times, over = numpy.ones(len(terms), self.wide), numpy.ones(len(terms), self.wide)
        if tensor.recipe.spec.sparsify in (RANDOM, MAGPRUNE):
            masks = numpy.stack([tensor.drawn_mask(term, piece).numpy().reshape(-1) for term in terms])
        for m, term in enumerate(terms):
            if term.density >= 1:
                continue
            if tensor.recipe.rescale == "l1":
                times[m] = tensor.l1_factor(term)
            elif tensor.recipe.rescale == "expectation" and tensor.recipe.spec.sparsify != MAGPRUNE:
                over[m] = term.density
        if tensor.recipe.rescale == "expectation" and tensor.recipe.spec.sparsify == MAGPRUNE:
            probabilities = numpy.stack([tensor.chances(term, piece).numpy().reshape(-1) for term in terms])
        needed = bool(len(probabilities)) or bool((times != 1).any()) or bool((over != 1).any())
        return self.kernels.Rescale(needed, masks, probabilities, times, over)

    @cached_property
    def _combine(self) -> Any:
        how, kernels, terms = self.tensor.consensus, self.kernels, self.tensor.terms
        weights = [rounded(weight, self.tensor.dtype) for weight in how.weights]
        share = rounded(math.fsum(weights), self.tensor.dtype)
        mode, slack = kernels.NO_SLACK, 0.0
        if how.slack.on and how.elect:
            if math.isinf(how.slack.xi):
                mode, slack = kernels.INFINITE, 2.0
            elif how.slack.form == "ratio":
                mode, slack = kernels.RATIO, 1 + how.slack.xi
            else:
                mode, slack = kernels.DIFFERENCE, how.slack.xi * self._unit
        scope = numpy.full(len(terms), -1, self.wide)
        for m, term in enumerate(terms):
            if term.scope:
                scope[m] = self.job.selection[term.parent, self.tensor.dtype].thresholds[term.scope].value
        return kernels.Combine(
            weights=numpy.array(weights, self.wide),
            share=self.wide(1.0 if abs(share) < 1e-8 else share),
            least=self.wide(max(0.0, min(weights))),
            elect=how.elect,
            normalize=how.normalize,
            weighted=how.weighted,
            positive=min(weights) >= 0,
            both=how.slack.both and mode != kernels.NO_SLACK,
            mode=mode,
            slack=self.wide(slack),
            protected=numpy.array(how.slack.protected or [False] * len(terms), bool),
            scope=scope,
        )

    @property
    def _unit(self) -> float:
        """Of a difference: see election.Slack."""
        measured = any(term.measured for term in self.tensor.terms)
        return self.tensor.protected_rms(self.job) if measured else self.tensor.consensus.slack.unit

    def _tallies(self) -> Any:
        terms, how = self.tensor.terms, self.tensor.consensus
        count = len(terms) if self.levels else 0
        return self.kernels.Tallies(
            wanted=bool(self.levels),
            own_signs=not how.slack.both and (not how.weighted or min(how.weights) > 0),
            levels=self._edges,
            counts=numpy.zeros((count, 1 + len(self.levels), 3), numpy.int64),
            turned=numpy.zeros((count, 2), numpy.int64),
            energies=numpy.zeros(1 + len(terms)),
        )

    @cached_property
    def _edges(self) -> Array:
        """Of the levels, [models, levels]."""
        ranks = [kept(level, self.job.output.numel) for level in self.levels]
        rows = [
            [self.job.selection[term.parent, self.tensor.dtype].thresholds[rank].value for rank in ranks]
            for term in self.tensor.terms
        ]
        return numpy.array(rows, self.wide).reshape(len(rows), len(ranks))


def covers(tensor: TensorRecipe) -> bool:
    """Whether there is a kernel for a recipe."""
    spec = tensor.recipe.spec
    if spec.combine == "average":
        return True
    drawn = any(term.random_signs for term in tensor.terms)
    return spec.combine == "task_vectors" and spec.consensus is None and spec.sparsify in SPARSIFIERS and not drawn


def is_faster(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether the loops were measured to be faster: where float32 task vectors are trimmed or signs elected."""
    return dtype == torch.float32 and (recipe.spec.sparsify is not None or recipe.spec.elect)


def kernels_for(plan: Plan, device: str, tell: bool) -> ModuleType | None:
    """The compiled loops, where a plan is large enough, gains by them, and the device is a CPU."""
    floating = [output for output in plan.outputs if output.floating]
    if device != "cpu" or sum(output.numel for output in floating) < WORTH:
        return None
    pairs = ((recipe, compute_dtype(recipe, plan, output)) for recipe in plan.recipes for output in floating[:1])
    if WHERE_FASTER and not any(is_faster(recipe, dtype) for recipe, dtype in pairs):
        return None
    stored = {info.dtype for parent in plan.parents.values() for info in parent.tensors.values()}
    double = "F64" in stored or any(recipe.compute_dtype == "float64" for recipe in plan.recipes)
    return compiled_kernels(["float32", "float64"] if double else ["float32"], tell)


def fused(tensor: TensorRecipe, job: Job, observers: Sequence[Observer | None]) -> Fused | None:
    """The compiled merge of recipes with this agreement; None where there is none."""
    if job.kernels is None or not covers(tensor):
        return None
    if WHERE_FASTER and not is_faster(tensor.recipe, tensor.dtype):
        return None
    levels = next((observer.levels for observer in observers if observer is not None), ())
    return Fused(tensor, job, job.kernels, levels)
