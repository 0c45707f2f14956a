"""Compare methods by their frontiers: every knob value scored, accuracy against bits per byte. Pure.

A knob (the SFT rate, lambda of a merge) trades accuracy for bits, so that one point per method compares two knob
settings. Here the curve through all points of a method is compared: the mean gap in accuracy over the bits that both
curves cover (docs/explanation/statistics.md, "Frontiers"). Dev decides which points count and how much (pruning, window
and weights); test gives every estimate, each a weighted sum of scores (pipeline/report/paired.py: combination).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import inf, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.report.inference import LEVEL, ROUNDING, Estimate, quantile
from pipeline.report.paired import Cell, Evidence, Term
from pipeline.report.records import Evaluation, FrontierPoint, methods_in_order

PRICE = 0.2  # accuracy per bit per byte: what CT pays for the bits that it saves
LEAST_WINDOW = 0.05  # bits per byte that both frontiers must cover
LARGEST_SLIP = 0.02  # bits per byte by which matching on dev may miss on test
PRUNED_ERRORS = 2.0  # a dominated point goes where its rival is this many standard errors more accurate
KNOBS = {"lambda": "\u03bb", "learning_rate": "rate"}
Floats = NDArray[np.float64]
Weights = Sequence[tuple[Cell, float]]


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A knob value of a method at a budget, as dev has it.

    cell: its name in Evidence. bits, accuracy: on dev, means over seeds. pruned: dominated, left out of the curve.
    """

    method: str
    ct_tokens: int
    text: str
    cell: Cell
    bits: float
    accuracy: float
    pruned: bool = False


@dataclass(frozen=True, kw_only=True)
class Separate:
    """Two frontiers that share fewer than LEAST_WINDOW bits, at their nearest points.

    left: the method of fewer bits, right: the other. accuracy: left's at its point of most bits minus right's at its
    point of fewest; if right does not fall with more bits, a lower bound of the gap there. bits: right's minus left's.
    tie: the price of a bit at which both are worth the same, with Fieller's 95% interval (infinite where it has none).
    falls: whether right is less accurate at more bits somewhere on dev.
    """

    left: str
    right: str
    accuracy: Estimate
    bits: Estimate
    tie: tuple[float, float, float]
    falls: bool


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much more accurate the first method is than the second at equal bits: D, where both frontiers share bits.

    window: in bits per byte, on dev. weights: of each method's knob values. slip: the first's bits minus the second's,
    on test. families: D of single families of tasks. Without an estimate `separate` has what can be said, or `missing`
    why nothing can.
    """

    first: str
    second: str
    ct_tokens: int
    window: tuple[float, float] | None = None
    weights: tuple[Mapping[str, float], ...] = ()
    estimate: Estimate | None = None
    slip: Estimate | None = None
    families: Mapping[str, Estimate] | None = None
    separate: Separate | None = None
    missing: str = ""

    @property
    def slipped(self) -> bool:
        """Return whether matching failed: the methods are not at equal bits on test."""
        return self.slip is not None and abs(self.slip.value) > LARGEST_SLIP + ROUNDING


class Match(NamedTuple):
    """Two curves at a budget, over the seeds of both: their points on dev, and the bits that both cover."""

    first: list[Knob]
    second: list[Knob]
    seeds: frozenset[int]
    window: tuple[float, float]

    @property
    def shares_bits(self) -> bool:
        low, high = self.window
        return high - low >= LEAST_WINDOW - ROUNDING


def hat_weights(bits: ArrayLike, low: float, high: float) -> Floats:
    """Return the weights that make the mean over [low, high] of the straight lines through (bits, values) from the
    values.

    At low = high: the value there. Points of equal bits share the weight of their mean.
    """
    places = np.asarray(bits, dtype=np.float64)
    x, which, counts = np.unique(places, return_inverse=True, return_counts=True)
    knots = np.unique(np.concatenate([[low, high], x[(x > low) & (x < high)]]))
    hats = np.asarray([np.interp(knots, x, unit) for unit in np.eye(len(x))])
    mean_of = hats if low == high else (hats[:, 1:] + hats[:, :-1]) / 2 * np.diff(knots) / (high - low)
    shared: Floats = (mean_of.sum(axis=1) / counts)[which]
    return shared


def gap_terms(first: Weights, second: Weights, price: float = PRICE, family: str | None = None) -> list[Term]:
    """Return the utility (accuracy minus price times bits) of some weighted cells minus that of others, as one sum.

    The bits correct for what matching missed: at equal bits they cancel.
    """
    sides = [(cell, weight) for cell, weight in first] + [(cell, -weight) for cell, weight in second]
    accuracies: list[Term] = [("accuracy", family, cell, weight) for cell, weight in sides]
    return accuracies + [("bits", None, cell, -price * weight) for cell, weight in sides if price]


def slip_terms(first: Weights, second: Weights) -> list[Term]:
    """Return the bits of some weighted cells minus those of others."""
    return [("bits", None, cell, way * weight) for side, way in ((first, 1.0), (second, -1.0)) for cell, weight in side]


def knob_text(settings: Mapping[str, Any]) -> str:
    """Format a knob value, as `λ 1.5` or `rate 5e-4`: equal for `5e-4`, which YAML reads as text, and 0.0005."""
    return ", ".join(f"{KNOBS.get(key, key)} {_number(settings[key])}" for key in sorted(settings))


def _number(value: Any) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not 0 < abs(number) < 1e-3:
        return f"{number:g}"
    digits, exponent = f"{number:.5e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def cell_of(method: str, ct_tokens: int, settings: Mapping[str, Any]) -> Cell:
    """Return the name that Evidence has for a knob value of a method."""
    return f"{method} ({knob_text(settings)})", ct_tokens


def on_test(points: Iterable[FrontierPoint]) -> list[Evaluation]:
    """Return the test scores of points, by the names of `cell_of`."""
    return [Evaluation(*cell_of(p.method, p.ct_tokens, p.settings), p.seed, p.folder) for p in points]


class Frontiers:
    """The frontiers of a run in one language."""

    def __init__(self, points: Sequence[FrontierPoint], language: str) -> None:
        self.test = Evidence(on_test(points), language)
        self.dev = Evidence(
            [replace(one, folder=p.dev) for one, p in zip(on_test(points), points, strict=True)], language
        )
        self._cells: dict[tuple[str, int], dict[str, Cell]] = {}
        self._settings: dict[Cell, dict[str, Any]] = {}
        for point in points:
            cell = cell_of(point.method, point.ct_tokens, point.settings)
            self._settings[cell] = dict(point.settings)
            self._cells.setdefault((point.method, point.ct_tokens), {})[knob_text(point.settings)] = cell

    @cached_property
    def methods(self) -> list[str]:
        """List methods with a frontier: those that train, then merges."""
        return methods_in_order(method for method, _ in self._cells)

    @cached_property
    def budgets(self) -> list[int]:
        """CT budgets with a frontier, ascending."""
        return sorted({budget for _, budget in self._cells})

    def cells(self, method: str, ct_tokens: int) -> dict[str, Cell]:
        """Return the cells by the text of their knob value."""
        return self._cells.get((method, ct_tokens), {})

    def seeds(self, cells: Iterable[Cell], among: Collection[int] | None = None) -> frozenset[int]:
        """Return the seeds that all of these cells have, on dev and on test."""
        every = [evidence.seeds(*cell) for cell in cells for evidence in (self.dev, self.test)]
        shared = set.intersection(*every) if every else set()
        return frozenset(shared if among is None else shared.intersection(among))

    def seeds_of(self, method: str, ct_tokens: int) -> frozenset[int]:
        """Return the seeds that all points of a curve share."""
        return self.seeds(self.cells(method, ct_tokens).values())

    def curve(self, method: str, ct_tokens: int, seeds: Collection[int]) -> list[Knob]:
        """Return the points of a method on dev, by ascending bits; empty where accuracy or bits were not measured."""
        points = []
        for text, cell in self.cells(method, ct_tokens).items():
            bits, accuracy = (self.dev.combination([(kind, None, cell, 1.0)], seeds) for kind in ("bits", "accuracy"))
            if bits is None or accuracy is None:
                return []
            points.append(
                Knob(method=method, ct_tokens=ct_tokens, text=text, cell=cell, bits=bits.value, accuracy=accuracy.value)
            )
        return sorted(
            (replace(point, pruned=any(self._dominates(rival, point, seeds) for rival in points)) for point in points),
            key=lambda point: (point.bits, point.text),
        )

    def _dominates(self, rival: Knob, point: Knob, seeds: Collection[int]) -> bool:
        """Return whether the rival has no more bits and is more accurate by two paired standard errors, all on dev."""
        if rival.bits > point.bits or rival.accuracy <= point.accuracy:
            return False
        terms: list[Term] = [("accuracy", None, rival.cell, 1.0), ("accuracy", None, point.cell, -1.0)]
        difference = self.dev.combination(terms, seeds)
        return difference is not None and difference.value > PRUNED_ERRORS * difference.error

    def match(self, first: str, second: str, ct_tokens: int, among: Collection[int] | None = None) -> Match | str:
        """Return two curves and their window, or what is missing."""
        sides = [self.cells(method, ct_tokens) for method in (first, second)]
        if not all(sides):
            return "Not computed: it needs scores of every knob value on dev and on test (eval.frontier=all)."
        seeds = self.seeds((cell for side in sides for cell in side.values()), among)
        curves = [self.curve(method, ct_tokens, seeds) if seeds else [] for method in (first, second)]
        if not seeds:
            return "Not computed: the knob values of both methods share no seed."
        if not all(curves):
            return "Not computed: it needs accuracy and bits per byte of the same checkpoints."
        kept = [[point for point in curve if not point.pruned] for curve in curves]
        low = max(min(point.bits for point in points) for points in kept)
        high = min(max(point.bits for point in points) for points in kept)
        return Match(curves[0], curves[1], seeds, (low, high))

    def weights(self, match: Match, low: float, high: float) -> tuple[dict[Knob, float], dict[Knob, float]]:
        """Return the weights of each curve's points for the mean over [low, high]; points without weight are left
        out.
        """

        def of(curve: Sequence[Knob]) -> dict[Knob, float]:
            kept = [point for point in curve if not point.pruned]
            each = hat_weights([point.bits for point in kept], low, high)
            return {point: float(weight) for point, weight in zip(kept, each, strict=True) if weight > 0}

        return of(match.first), of(match.second)

    def gap(
        self,
        first: str,
        second: str,
        ct_tokens: int,
        price: float = PRICE,
        seeds: Collection[int] | None = None,
        by_family: bool = False,
    ) -> Gap:
        """Return the gap of two methods at a budget. seeds: only these. by_family: of single families too."""
        match = self.match(first, second, ct_tokens, seeds)
        if isinstance(match, str):
            return Gap(first=first, second=second, ct_tokens=ct_tokens, missing=match)
        if not match.shares_bits:
            return Gap(first=first, second=second, ct_tokens=ct_tokens, separate=self._separate(match))
        sides = self.weights(match, *match.window)
        first_side, second_side = (by_cell(side) for side in sides)
        families = self.test.families if by_family and len(self.test.families) > 1 else []
        of_families = {
            family: estimate
            for family in families
            if (estimate := self.test.combination(gap_terms(first_side, second_side, price, family), match.seeds))
        }
        return Gap(
            first=first,
            second=second,
            ct_tokens=ct_tokens,
            window=match.window,
            weights=tuple({point.text: weight for point, weight in side.items()} for side in sides),
            estimate=self.test.combination(gap_terms(first_side, second_side, price), match.seeds),
            slip=self.test.combination(slip_terms(first_side, second_side), match.seeds),
            families=of_families,
        )

    def along(self, first: str, second: str, ct_tokens: int, steps: int = 24) -> list[tuple[float, Estimate]]:
        """Return the gap at single bits over the window: at equal steps, and at every knob value in it."""
        match = self.match(first, second, ct_tokens)
        if isinstance(match, str) or not match.shares_bits:
            return []
        low, high = match.window
        inside = [point.bits for point in (*match.first, *match.second) if not point.pruned and low < point.bits < high]
        found = []
        for bits in np.unique([*np.linspace(low, high, steps + 1), *inside]):
            sides = [by_cell(side) for side in self.weights(match, bits, bits)]
            if (estimate := self.test.combination(gap_terms(sides[0], sides[1]), match.seeds)) is not None:
                found.append((float(bits), estimate))
        return found

    def matching(self, first: str, second: str, ct_tokens: int) -> dict[str, float | None]:
        """Return, by knob value of one method, the other's value with the same bits on dev, to match them in a next
        run.

        None if the other's values do not reach. Empty where its knob is not one number.
        """
        match = self.match(first, second, ct_tokens)
        if isinstance(match, str):
            return {}
        try:
            values = [float(value) for point in match.second for value in self._one_setting(point)]
        except (TypeError, ValueError):
            return {}
        bits = [point.bits for point in match.second]
        return {point.text: matching_value(values, bits, point.bits) for point in match.first}

    def _one_setting(self, point: Knob) -> tuple[Any]:
        (value,) = self._settings[point.cell].values()
        return (value,)

    def _separate(self, match: Match) -> Separate | None:
        curves = [[point for point in curve if not point.pruned] for curve in (match.first, match.second)]
        left, right = sorted(curves, key=lambda curve: (curve[0].bits + curve[-1].bits, curve[0].method))
        most, fewest = left[-1].cell, right[0].cell
        accuracy: list[Term] = [("accuracy", None, most, 1.0), ("accuracy", None, fewest, -1.0)]
        bits: list[Term] = [("bits", None, fewest, 1.0), ("bits", None, most, -1.0)]
        difference, saved = (self.test.combination(terms, match.seeds) for terms in (accuracy, bits))
        if difference is None or saved is None:
            return None

        def worth(price: float) -> Estimate:
            """Return the utility of left minus that of right, on the same seeds and items."""
            utility = self.test.combination(gap_terms([(most, 1.0)], [(fewest, 1.0)], price), match.seeds)
            return utility or difference

        falls = any(after.accuracy < before.accuracy for before, after in pairwise(right))
        tie = price_of_tie(difference, saved, worth(1.0), worth(-difference.value / (saved.value or inf)).dof)
        return Separate(
            left=left[0].method, right=right[0].method, accuracy=difference, bits=saved, tie=tie, falls=falls
        )


def by_cell(side: Mapping[Knob, float]) -> list[tuple[Cell, float]]:
    """Return the weights of points by the names that Evidence has for them."""
    return [(point.cell, weight) for point, weight in side.items()]


def price_of_tie(accuracy: Estimate, bits: Estimate, both: Estimate, dof: float) -> tuple[float, float, float]:
    """Return -accuracy / bits with Fieller's 95% interval, which is infinite if bits do not clearly differ from 0.

    both: accuracy + bits, whose error has their covariance. dof: degrees of freedom of their sum at the tie.
    """
    value = -accuracy.value / bits.value if bits.value else inf
    across, down = accuracy.error**2, bits.error**2
    if inf in (accuracy.error, bits.error):
        return value, -inf, inf
    covariance = float(np.clip((both.error**2 - across - down) / 2, -sqrt(across * down), sqrt(across * down)))
    t = quantile(1 - LEVEL / 2, dof) ** 2
    # the prices w at which accuracy + w bits does not differ from 0: a w^2 + 2 b w + c <= 0
    a, b, c = bits.value**2 - t * down, accuracy.value * bits.value - t * covariance, accuracy.value**2 - t * across
    if a <= 0:
        return value, -inf, inf
    half = sqrt(max(0.0, b**2 - a * c))
    return value, (-b - half) / a, (-b + half) / a


def matching_value(values: Sequence[float], bits: Sequence[float], target: float) -> float | None:
    """Return the knob value that has these bits, on straight lines between measured ones; of several, the largest.

    None if the measured values do not reach the bits.
    """
    found = []
    for (x, at_x), (y, at_y) in pairwise(sorted(zip(values, bits, strict=True))):
        if min(at_x, at_y) <= target <= max(at_x, at_y):
            found.append(max(x, y) if at_x == at_y else x + (target - at_x) / (at_y - at_x) * (y - x))
    return max(found, default=None)


def pairs(methods: Sequence[str], asked: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Return the pairs whose gaps are shown: those that hypotheses ask about, then every other method minus
    CT-then-SFT.
    """
    listed = [pair for pair in dict.fromkeys(asked) if set(pair) <= set(methods)]
    for method in methods:
        rest, _, name = method.rpartition("/")
        baseline = f"{rest}/ct_then_sft" if rest else "ct_then_sft"
        pair = (method, baseline)
        if name != "ct_then_sft" and baseline in methods and pair not in listed and pair[::-1] not in listed:
            listed.append(pair)
    return listed
