"""Merges of one tensor in compiled loops (merge/loops), where these have the method.

They give the results of the arithmetic on tensors bit for bit: merge/arithmetic.py defines it, and is used where there
is no loop (other methods, other devices, no numba).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from merge.arithmetic import rounded
from merge.engine.pieces import Job, Piece
from merge.engine.plan import Plan, compute_dtype
from merge.engine.sparsification import SPARSIFICATIONS, Random
from merge.engine.tensor_recipe import ModelTerm, Observer, TaskVectorMerge, TensorRecipe
from merge.loops.machine_code import compiled_loops
from merge.loops.tables import (
    DIFFERENCE,
    INFINITE,
    KINDS,
    NO_SLACK,
    RATIO,
    Loop,
    MergeCall,
    Number,
    Row,
    Scalar,
    Stored,
)
from merge.methods import AVERAGE, TASK_VECTORS
from merge.recipe import Recipe
from merge.select import Array, count_kept

WORTH = 1 << 26  # parameters; with fewer, loading the loops takes what they save (docs/development/benchmarks.md)
WORTH_COMPILING = 1 << 28  # parameters; with fewer, loops are used where they were compiled before
WHERE_FASTER = True  # leave to tensors what they merge as fast; tests compare all
Loops = Mapping[int, Mapping[str, Loop]]  # by kind of arithmetic and name


@dataclass
class FusedCounts:
    """What an audit counts of one slice (see tables.Tallies)."""

    counts: list[tuple[list[list[int]], tuple[int, int]]]
    energies: list[float | None]  # by model, Σ τ² of what entered the merge; None: all of it
    energy: float  # Σ τ_m²


@dataclass
class FusedSlice:
    """A merged slice. values: by recipe, in its dtype; None for a recipe that is the model itself.

    nonfinite: what is not finite, see formats.store; 0 if all is. counts: for an audit.
    """

    values: list[torch.Tensor | None]
    nonfinite: int
    counts: FusedCounts | None = None


class FusedMerge(ABC):
    """The merge of one tensor by recipes that differ in λ and in the dtype of the result."""

    def __init__(self, alike: Sequence[TensorRecipe], job: Job, call: MergeCall):
        self.alike, self.job, self.call = alike, job, call
        self.dtype, self.terms = alike[0].dtype, alike[0].terms

    @abstractmethod
    def merge(self, piece: Piece) -> FusedSlice:
        """Merge a slice; call it for every slice, in order."""

    def _results(self, piece: Piece, tensors: Sequence[TensorRecipe]) -> dict[int, Stored]:
        """Allocate the results of these recipes, by id, in dtypes that a loop writes."""
        size = piece.stop - piece.start
        dtypes = {id(each): each.out_dtype if each.out_dtype in KINDS else torch.float32 for each in tensors}
        return {key: Stored(torch.empty(size, dtype=dtype)) for key, dtype in dtypes.items()}

    def _values(self, results: Mapping[int, Stored]) -> list[torch.Tensor | None]:
        shape = (-1, self.job.columns)
        return [
            results[id(tensor)].values.to(tensor.out_dtype).view(shape) if id(tensor) in results else None
            for tensor in self.alike
        ]


class FusedAverage(FusedMerge):
    """The weighted average of weights."""

    def __init__(self, alike: Sequence[TensorRecipe], job: Job, loop: Loop):
        super().__init__(alike, job, MergeCall(loop, len(alike[0].terms)))
        how = alike[0].consensus
        weights = torch.tensor(how.weights, dtype=torch.float32)
        self.call.settings[Row.WEIGHT] = weights.numpy()
        self.call.scalars[Scalar.SHARE] = float(weights.sum()) if how.normalize else 1

    def merge(self, piece: Piece) -> FusedSlice:
        parents = [self.terms[0].parent, *(term.parent for term in self.terms)]  # the first takes the base's place
        weights = [piece.stored(parent, self.dtype) for parent in parents]
        results = self._results(piece, self.alike)
        nonfinite = 0
        for result in results.values():
            nonfinite |= self.call(weights, [result])
        return FusedSlice(self._values(results), nonfinite)


class FusedTaskVectors(FusedMerge):
    """Sparsified task vectors on a base. levels: fractions of largest magnitudes that an audit counts, if any."""

    def __init__(self, alike: Sequence[TaskVectorMerge], job: Job, loop: Loop, levels: Sequence[float]):
        super().__init__(alike, job, MergeCall(loop, len(alike[0].terms), len(levels)))
        self.first, self.levels = alike[0], levels
        self.sparsification = self.first.sparsification
        self.changed = [tensor for tensor in alike if not tensor.is_the_model]
        self.has_chances = isinstance(self.sparsification, Random) and self.sparsification.needs_chances(self.first)
        self._set_trim()
        self._set_rescale()
        self._set_combine()
        self.call.lambdas = numpy.array([tensor.lambda_ for tensor in self.changed], numpy.float32)
        self.left = self.call.left.copy()

    def merge(self, piece: Piece) -> FusedSlice:
        parents = [self.first.base, *(term.parent for term in self.terms)]
        weights = [piece.stored(parent, self.dtype) for parent in parents]
        results = self._results(piece, self.changed)
        if piece.start == 0:
            self.call.left = self.left.copy()
        self.call.clear()
        nonfinite = self.call(weights, list(results.values()), *self._drawn(piece))
        return FusedSlice(self._values(results), nonfinite, self._counts() if self.levels else None)

    def _counts(self) -> FusedCounts:
        counts = [
            (rows.tolist(), (int(turned[0]), int(turned[1])))
            for rows, turned in zip(self.call.counts, self.call.turned, strict=True)
        ]
        merged, *energies = self.call.energies.tolist()
        entered = [
            None if self._is_complete(term) and not self.first.consensus.elect else energy
            for term, energy in zip(self.terms, energies, strict=True)
        ]
        return FusedCounts(counts, entered, merged)

    def _is_complete(self, term: ModelTerm) -> bool:
        """Tell whether nothing of a task vector is trimmed or dropped."""
        if self.sparsification.is_drawn:
            return term.density >= 1
        m = self.terms.index(term)
        return bool(self.call.settings[Row.EDGE, m] < 0 and self.call.settings[Row.EDGE_OF_LARGEST, m] == math.inf)

    def _set_trim(self) -> None:
        """Set ranks as edges of magnitude: of what is kept, and of what is dropped of it again."""
        settings = self.call.settings
        settings[[Row.EDGE, Row.BELOW]], settings[[Row.EDGE_OF_LARGEST, Row.BELOW_LARGEST]] = -1, math.inf
        for m, term in enumerate(self.terms):
            for row, rank in enumerate(term.ranks):
                edge, below = Row.EDGE + row, Row.BELOW + row
                if rank > 0:
                    at = self._thresholds(term)[rank]
                    settings[edge, m], settings[below, m], self.call.left[row, m] = at.value, at.below, at.ties_kept
                else:
                    settings[edge, m] = settings[below, m] = math.inf

    def _set_rescale(self) -> None:
        """Set what compensates for trimming or dropping."""
        how, settings = self.first.recipe.rescale, self.call.settings
        for m, term in enumerate(self.terms):
            if term.density < 1 and how == "l1":
                settings[Row.TIMES, m] = self.first.l1_factor(term)
            elif term.density < 1 and how == "expectation" and not self.has_chances:
                settings[Row.OVER, m] = term.density
        is_scaled = bool((settings[[Row.TIMES, Row.OVER]] != 1).any())
        self.call.numbers[Number.RESCALED] = self.has_chances or is_scaled

    def _drawn(self, piece: Piece) -> tuple[Array | None, Array | None]:
        """Return masks of what is drawn, and the probabilities by which it was, if results are divided by them."""
        if not isinstance(self.sparsification, Random):
            return None, None
        shape = (len(self.terms), piece.stop - piece.start)
        masks = numpy.ones(shape, numpy.uint8)
        chances = numpy.ones(shape, numpy.float32) if self.has_chances else None
        for m, term in enumerate(self.terms):
            if term.density < 1:
                masks[m] = self.sparsification.mask(self.first, term, piece).numpy().reshape(-1)
                if chances is not None:
                    expected = self.sparsification.expected(self.first, term, piece)
                    chances[m] = torch.as_tensor(expected).numpy().reshape(-1)
        return masks, chances

    def _set_combine(self) -> None:
        how = self.first.consensus
        weights = [rounded(weight, self.dtype) for weight in how.weights]
        divisor = rounded(math.fsum(weights), self.dtype)
        form, slack = self._slack()
        settings, scalars, numbers = self.call.settings, self.call.scalars, self.call.numbers
        settings[Row.WEIGHT] = weights
        settings[Row.PROTECTED] = how.slack.protected or [False] * len(self.terms)
        settings[Row.SCOPE] = [self._thresholds(term)[term.scope].value if term.scope else -1 for term in self.terms]
        scalars[Scalar.SHARE] = 1.0 if abs(divisor) < 1e-8 else divisor
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
        ranks = [count_kept(level, self.job.output.numel) for level in self.levels]
        for m, term in enumerate(self.terms if ranks else []):
            self.call.levels[:, m] = [self._thresholds(term)[rank].value for rank in ranks]

    def _slack(self) -> tuple[int, float]:
        """Return the form of slack, and its factor in this form; for a difference see arithmetic.Slack."""
        slack = self.first.slack(self.job)
        if not (slack.on and self.first.consensus.elect):
            return NO_SLACK, 0.0
        if math.isinf(slack.xi):
            return INFINITE, 2.0
        return (RATIO, 1 + slack.xi) if slack.form == "ratio" else (DIFFERENCE, slack.xi * slack.unit)

    def _thresholds(self, term: ModelTerm) -> Any:
        return self.job.selection[term.parent, self.dtype].thresholds


def covers(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Tell whether there is a loop for a recipe, computed in `dtype`."""
    spec = recipe.spec
    if dtype not in KINDS:
        return False
    if spec.combine == TASK_VECTORS and spec.consensus is None and SPARSIFICATIONS[spec.sparsify].has_loop:
        return not any(model.random_signs for model in recipe.models)
    return spec.combine == AVERAGE


def is_faster(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Tell whether loops were measured to be faster than tensors for a recipe that they cover."""
    return covers(recipe, dtype) and (not WHERE_FASTER or recipe.spec.combine != AVERAGE)


def loops_for(plan: Plan, device: str, tell: bool) -> Loops | None:
    """Return the compiled loops, if the plan is large enough and they cover a recipe, and the device is a CPU."""
    floating = [output for output in plan.outputs if output.floating]
    size = sum(output.numel for output in floating)
    if device != "cpu" or size < WORTH:
        return None
    used = ((recipe, compute_dtype(recipe, plan, output)) for recipe in plan.recipes for output in floating)
    kinds = {KINDS[dtype] for recipe, dtype in used if is_faster(recipe, dtype)}
    return compiled_loops(kinds, tell, size >= WORTH_COMPILING) if kinds else None


def fused(alike: Sequence[TensorRecipe], job: Job, observers: Sequence[Observer | None]) -> FusedMerge | None:
    """Return the compiled merge of recipes with one signature; None if there is none."""
    first = alike[0]
    if job.loops is None or not is_faster(first.recipe, first.dtype):
        return None
    loops = job.loops[KINDS[first.dtype]]
    task_vectors = [tensor for tensor in alike if isinstance(tensor, TaskVectorMerge)]
    if not task_vectors:
        return FusedAverage(alike, job, loops["average"])
    levels = next((observer.levels for observer in observers if observer is not None), ())
    return FusedTaskVectors(task_vectors, job, loops["merge"], levels)
