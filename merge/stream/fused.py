"""Merges of one tensor in compiled loops (merge/loops), where these have the method.

They give the results of the arithmetic on tensors bit for bit: merge/methods.py defines it, and merges where there is
no loop (other methods, other devices, no numba).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from merge.engine.plan import Plan, compute_dtype
from merge.loops.arguments import DIFFERENCE, INFINITE, NO_SLACK, RATIO, Number, Row, Scalar
from merge.loops.calls import KINDS, MergeCall, Stored
from merge.loops.machine_code import Loop, compiled_loops
from merge.method_table import MAGNITUDE, MAGNITUDE_OUTLIERS, MAGPRUNE, RANDOM
from merge.methods import rounded
from merge.recipe import Recipe
from merge.select import Array, kept
from merge.stream.model_term import ModelTerm
from merge.stream.pieces import Job, Piece
from merge.stream.tensor_recipe import Observer, TensorRecipe

SPARSIFIERS = (None, MAGNITUDE, MAGNITUDE_OUTLIERS, RANDOM, MAGPRUNE)
WORTH = 1 << 26  # parameters; with fewer, loading the loops takes what they save (docs/development/benchmarks.md)
WORTH_COMPILING = 1 << 28  # parameters; with fewer, loops are used where they were compiled before
WHERE_FASTER = True  # leave to tensors what they merge as fast; tests compare all
Loops = Mapping[int, Mapping[str, Loop]]  # by kind of arithmetic and name


@dataclass
class FusedAgreement:
    """What an audit counts of one slice (see arguments.Tallies)."""

    counts: list[tuple[list[list[int]], tuple[int, int]]]
    energies: list[float | None]  # by model, Σ τ² of what entered the merge; None: all of it
    energy: float  # Σ τ_m²


class Fused:
    """The merge of one tensor by recipes that differ in λ and in the dtype of the result.

    levels: what shares of largest magnitudes an audit counts, none without one.
    """

    def __init__(self, alike: Sequence[TensorRecipe], job: Job, loops: Mapping[str, Loop], levels: Sequence[float]):
        self.alike, self.job, self.levels = alike, job, levels
        self.first = first = alike[0]
        self.averages = first.recipe.spec.combine == "average"
        self.moved = [tensor for tensor in alike if self.averages or not tensor.is_the_model]
        self.call = MergeCall(loops["average" if self.averages else "merge"], len(first.terms), len(levels))
        if self.averages:
            self._set_average()
            return
        self._set_trim()
        self._set_rescale()
        self._set_combine()
        self.call.lambdas = numpy.array([tensor.lambda_ for tensor in self.moved], numpy.float32)
        self.left = self.call.left.copy()

    def merge(self, piece: Piece) -> tuple[list[torch.Tensor | None], int, FusedAgreement | None]:
        """The slice of each recipe, in its dtype, and what an audit counts; ask for every slice, in order.

        None for a recipe that is the model itself. The number says what is not finite: see stored_numbers.store.
        """
        dtype, call, terms = self.first.dtype, self.call, self.first.terms
        parents = [term.parent for term in terms]
        parents.insert(0, parents[0] if self.averages else self.first.base)
        weights = [piece.stored(parent, dtype) for parent in parents]
        shape = (-1, self.job.columns)
        made = {id(tensor): Stored(torch.empty(piece.stop - piece.start, dtype=_held(tensor))) for tensor in self.moved}
        if self.averages:
            found = 0
            for result in made.values():
                found |= call(weights, [result])
        else:
            if piece.start == 0:
                call.left = self.left.copy()
            call.clear()
            found = call(weights, list(made.values()), *self._drawn(piece))
        results = [
            made[id(tensor)].values.to(tensor.out_dtype).view(shape) if id(tensor) in made else None
            for tensor in self.alike
        ]
        return results, found, self._seen() if self.levels else None

    def _seen(self) -> FusedAgreement:
        counts = [
            (rows.tolist(), (int(turned[0]), int(turned[1])))
            for rows, turned in zip(self.call.counts, self.call.turned, strict=True)
        ]
        merged, *energies = self.call.energies.tolist()
        entered = [
            None if self._whole(term) and not self.first.consensus.elect else energy
            for term, energy in zip(self.first.terms, energies, strict=True)
        ]
        return FusedAgreement(counts, entered, merged)

    def _whole(self, term: ModelTerm) -> bool:
        """Whether nothing of a task vector is thinned."""
        if self._draws:
            return term.density >= 1
        m = self.first.terms.index(term)
        return bool(self.call.settings[Row.EDGE, m] < 0 and self.call.settings[Row.EDGE_OF_LARGEST, m] == math.inf)

    @property
    def _draws(self) -> bool:
        return self.first.recipe.spec.sparsify in (RANDOM, MAGPRUNE)

    def _set_average(self) -> None:
        weights = torch.tensor(self.first.consensus.weights, dtype=torch.float32)
        self.call.settings[Row.WEIGHT] = weights.numpy()
        self.call.scalars[Scalar.SHARE] = float(weights.sum()) if self.first.consensus.normalize else 1

    def _set_trim(self) -> None:
        """Ranks as edges of magnitude: of what is kept, and of what is dropped of it again."""
        settings = self.call.settings
        settings[[Row.EDGE, Row.BELOW]], settings[[Row.EDGE_OF_LARGEST, Row.BELOW_LARGEST]] = -1, math.inf
        if self.first.recipe.spec.sparsify not in (MAGNITUDE, MAGNITUDE_OUTLIERS):
            return
        for m, term in enumerate(self.first.terms):
            for row, rank in enumerate(term.ranks):
                edge, below = Row.EDGE + row, Row.BELOW + row
                if rank > 0:
                    at = self._thresholds(term)[rank]
                    settings[edge, m], settings[below, m], self.call.left[row, m] = at.value, at.below, at.spare
                else:
                    settings[edge, m] = settings[below, m] = math.inf

    def _set_rescale(self) -> None:
        """What makes up for what trimming or dropping took."""
        how, spec = self.first.recipe.rescale, self.first.recipe.spec
        settings = self.call.settings
        for m, term in enumerate(self.first.terms):
            if term.density < 1 and how == "l1":
                settings[Row.TIMES, m] = self.first.l1_factor(term)
            elif term.density < 1 and how == "expectation" and spec.sparsify != MAGPRUNE:
                settings[Row.OVER, m] = term.density
        self.by_chance = how == "expectation" and spec.sparsify == MAGPRUNE
        made_up = bool((settings[[Row.TIMES, Row.OVER]] != 1).any())
        self.call.numbers[Number.RESCALED] = self.by_chance or made_up

    def _drawn(self, piece: Piece) -> tuple[Array | None, Array | None]:
        """Masks of what is drawn, and the probabilities by which it was where these are made up for."""
        if not self._draws:
            return None, None
        terms = self.first.terms
        size = piece.stop - piece.start
        masks = numpy.ones((len(terms), size), numpy.uint8)
        chances = numpy.ones((len(terms), size), numpy.float32) if self.by_chance else None
        for m, term in enumerate(terms):
            if term.density < 1:
                masks[m] = self.first.drawn_mask(term, piece).numpy().reshape(-1)
                if chances is not None:
                    chances[m] = self.first.chances(term, piece).numpy().reshape(-1)
        return masks, chances

    def _set_combine(self) -> None:
        how, terms, dtype = self.first.consensus, self.first.terms, self.first.dtype
        weights = [rounded(weight, dtype) for weight in how.weights]
        share = rounded(math.fsum(weights), dtype)
        form, slack = self._slack()
        settings, scalars, numbers = self.call.settings, self.call.scalars, self.call.numbers
        settings[Row.WEIGHT] = weights
        settings[Row.PROTECTED] = how.slack.protected or [False] * len(terms)
        settings[Row.SCOPE] = [self._thresholds(term)[term.scope].value if term.scope else -1 for term in terms]
        scalars[Scalar.SHARE] = 1.0 if abs(share) < 1e-8 else share
        scalars[Scalar.LEAST] = max(0.0, min(weights))
        scalars[Scalar.SLACK] = slack
        for number, value in {
            Number.ELECT: how.elect,
            Number.NORMALIZE: how.normalize,
            Number.WEIGHTED: how.weighted,
            Number.POSITIVE: min(weights) >= 0,
            Number.BOTH: how.slack.both and form != NO_SLACK,
            Number.SLACK_FORM: form,
            Number.AUDITED: bool(self.levels),
            Number.OWN_SIGNS: not how.slack.both and (not how.weighted or min(how.weights) > 0),
        }.items():
            numbers[number] = value
        ranks = [kept(level, self.job.output.numel) for level in self.levels]
        for m, term in enumerate(terms if ranks else []):
            self.call.levels[:, m] = [self._thresholds(term)[rank].value for rank in ranks]

    def _slack(self) -> tuple[int, float]:
        """Its form, and its factor in there; for a difference see election.Slack."""
        slack = self.first.slack(self.job)
        if not (slack.on and self.first.consensus.elect):
            return NO_SLACK, 0.0
        if math.isinf(slack.xi):
            return INFINITE, 2.0
        return (RATIO, 1 + slack.xi) if slack.form == "ratio" else (DIFFERENCE, slack.xi * slack.unit)

    def _thresholds(self, term: ModelTerm) -> Any:
        return self.job.selection[term.parent, self.first.dtype].thresholds


def _held(tensor: TensorRecipe) -> torch.dtype:
    """The dtype in which a loop writes a result."""
    return tensor.out_dtype if tensor.out_dtype in KINDS else torch.float32


def covers(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether there is a loop for a recipe, computed in `dtype`."""
    spec = recipe.spec
    if spec.combine == "average":
        return dtype in KINDS
    drawn = any(model.random_signs for model in recipe.models)
    known = spec.combine == "task_vectors" and spec.consensus is None and spec.sparsify in SPARSIFIERS
    return known and not drawn and dtype in KINDS


def is_faster(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether loops were measured to be faster than tensors for a recipe that they cover."""
    return covers(recipe, dtype) and (not WHERE_FASTER or recipe.spec.combine != "average")


def loops_for(plan: Plan, device: str, tell: bool) -> Loops | None:
    """The compiled loops, where a plan is large enough and has a recipe that they cover, and the device is a CPU."""
    floating = [output for output in plan.outputs if output.floating]
    size = sum(output.numel for output in floating)
    if device != "cpu" or size < WORTH:
        return None
    asked = ((recipe, compute_dtype(recipe, plan, output)) for recipe in plan.recipes for output in floating)
    kinds = {KINDS[dtype] for recipe, dtype in asked if is_faster(recipe, dtype)}
    return compiled_loops(kinds, tell, size >= WORTH_COMPILING) if kinds else None


def fused(alike: Sequence[TensorRecipe], job: Job, observers: Sequence[Observer | None]) -> Fused | None:
    """The compiled merge of recipes with one agreement; None where there is none."""
    first = alike[0]
    if job.loops is None or not is_faster(first.recipe, first.dtype):
        return None
    levels = next((observer.levels for observer in observers if observer is not None), ())
    return Fused(alike, job, job.loops[KINDS[first.dtype]], levels)
