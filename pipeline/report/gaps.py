"""The gaps between frontiers that a report shows: in words, in gaps.json and frontier.csv. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pipeline.report.claims import Answer
from pipeline.report.formatting import budget_name, by_part, interval, label
from pipeline.report.frontier import LEAST_WINDOW, Frontiers, Gap, Knob, Separate, pairs
from pipeline.report.inference import Estimate, Parts
from pipeline.report.paired import Evidence, Kind

COLUMNS = ("method", "knob", "ct_tokens", "seed", "dev_accuracy", "dev_bits", "test_accuracy", "test_bits", "pruned")
AXES: tuple[Kind, Kind] = ("accuracy", "bits")


@dataclass(frozen=True)
class FrontierGaps:
    """The frontiers of a report, and the gaps of the pairs that it shows."""

    frontiers: Frontiers
    gaps: Sequence[Gap]

    @property
    def pairs(self) -> dict[str, str]:
        """The titles of the pairs, by their names."""
        return {pair_name(gap): f"{label(gap.first)} minus {label(gap.second)}" for gap in self.gaps}

    @property
    def knobs(self) -> list[Knob]:
        """Every point of every method, over the seeds that all points of its curve share."""
        return [
            knob
            for method in self.frontiers.methods
            for budget in self.frontiers.budgets
            for knob in self.frontiers.curve(method, budget, self.frontiers.seeds_of(method, budget))
        ]

    def csv_rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of frontier.csv: one per knob value and seed, under COLUMNS."""
        for knob in self.knobs:
            for seed in sorted(self.frontiers.seeds([knob.cell])):
                splits = (self.frontiers.dev, self.frontiers.test)
                values = (score(split, knob, kind, {seed}) for split in splits for kind in AXES)
                yield knob.method, knob.text, knob.ct_tokens, seed, *values, str(knob.pruned).lower()

    def as_json(self) -> list[dict[str, Any]]:
        """Return the rows of gaps.json: gaps, and the knob values of a method with the same bits as the other's."""
        return [
            {
                **gap_row(gap),
                "same_bits": {
                    one: {text: value and round(value, 6) for text, value in matched.items()}
                    for one, other in ((gap.first, gap.second), (gap.second, gap.first))
                    if (matched := self.frontiers.matching(other, one, gap.ct_tokens))
                },
            }
            for gap in self.gaps
        ]


def frontier_gaps(frontiers: Frontiers, answers: Sequence[Answer]) -> FrontierGaps | None:
    """Return the gap of each pair at each budget that both have; first the pairs that hypotheses are about.

    None without frontiers.
    """
    if not frontiers.methods:
        return None
    named = [(row["first"], row["second"]) for answer in answers for row in answer.more.get("gaps", ())]
    gaps = [
        frontiers.gap(first, second, budget, by_family=True)
        for first, second in pairs(frontiers.methods, named)
        for budget in frontiers.budgets
        if frontiers.cells(first, budget) and frontiers.cells(second, budget)
    ]
    return FrontierGaps(frontiers, gaps)


PAIR = " - "  # page.js splits the name of a pair here


def pair_name(gap: Gap) -> str:
    """Return the name of a gap's methods in charts."""
    return f"{gap.first}{PAIR}{gap.second}"


def score(evidence: Evidence, knob: Knob, kind: Kind, seeds: Collection[int]) -> float:
    """Return what a knob value scored on a split, mean over seeds."""
    estimate = evidence.combination([(kind, None, knob.cell, 1.0)], seeds)
    assert estimate is not None, "a point of a curve was measured"
    return round(estimate.value, 6)


def ends(estimate: Estimate, suffix: str = "") -> dict[str, float | None]:
    """Return the interval and the MDE for JSON; what is infinite is null."""
    named = {"low": estimate.low, "high": estimate.high, "mde": estimate.mde}
    return {f"{name}{suffix}": value if isfinite(value) else None for name, value in named.items()}


def gap_row(gap: Gap, weight: float | None = None) -> dict[str, Any]:
    """Return a gap for JSON."""

    def shown(estimate: Estimate | None) -> dict[str, Any] | None:
        return {"value": estimate.value, "p": estimate.p, **ends(estimate)} if estimate else None

    separate = gap.separate
    return {
        "first": gap.first,
        "second": gap.second,
        "ct_tokens": gap.ct_tokens,
        **({} if weight is None else {"weight": weight}),
        "gap": shown(gap.estimate),
        "families": {family: shown(estimate) for family, estimate in (gap.families or {}).items()},
        "slip": shown(gap.slip),
        "matched": None if gap.slip is None else not gap.slipped,
        "window": list(gap.window) if gap.window else None,
        "weights": [dict(weights) for weights in gap.weights],
        "seeds": gap.estimate.seeds if gap.estimate else 0,
        "separate": separate
        and {
            "left": separate.left,
            "right": separate.right,
            "accuracy": shown(separate.accuracy),
            "bits": shown(separate.bits),
            "tie": [value if isfinite(value) else None for value in separate.tie],
            "right_falls": separate.falls,
        },
        "missing": gap.missing,
    }


def gap_text(gap: Gap) -> str:
    """Return a gap in words."""
    where, pair = f"At {budget_name(gap.ct_tokens)}", f"{label(gap.first)} minus {label(gap.second)}"
    if gap.separate is not None:
        return f"{where}: {_separate_text(gap.separate)}"
    if gap.estimate is None or gap.window is None or gap.slip is None:
        return f"{where}, {pair}: {gap.missing}"
    low, high = gap.window
    by_family = by_part(Parts("task", tuple((gap.families or {}).items())))
    return (
        f"{where}, {pair}, mean over {low:.2f} to {high:.2f} bits per byte: {interval(gap.estimate)} in accuracy. "
        f"On test they differ by {interval(gap.slip)} bits per byte. {by_family}"
    ).strip()


def _separate_text(separate: Separate) -> str:
    value, low, high = separate.tie
    price = f"95% CI {low:.3f} to {high:.3f}" if isfinite(low) else "no finite interval"
    left, right = label(separate.left), label(separate.right)
    falls = f" {right} is less accurate at more bits, so this is no bound." if separate.falls else ""
    return (
        f"the frontiers of {left} and {right} share fewer than {LEAST_WINDOW:g} bits per byte. Compared are {left} at "
        f"its most bits and {right} at its fewest. There {left} minus {right} is {interval(separate.accuracy)} in "
        f"accuracy, and {left} saves {interval(separate.bits)} bits per byte. They tie at a price of {value:.3f} "
        f"accuracy per bit "
        f"({price}).{falls}"
    )
