"""Frontiers as tables: frontier.csv, gaps.json, and what the charts of them are drawn from."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.chart_data import DIGITS, Table, Value
from pipeline.report.claims import Answer
from pipeline.report.frontier import Frontiers, Gap, Knob, pairs
from pipeline.report.hypothesis_answers import gap_row
from pipeline.report.inference import Estimate
from pipeline.report.paired import Evidence, Kind
from pipeline.report.records import label
from pipeline.report.results import budget_name

COLUMNS = (
    "method",
    "knob",
    "ct_tokens",
    "seed",
    "dev_accuracy",
    "dev_bits",
    "test_accuracy",
    "test_bits",
    "pruned",
)
KINDS: tuple[Kind, Kind] = ("accuracy", "bits")
NO_SHARED_BITS = "no shared range of bits per byte"


@dataclass(frozen=True)
class Found:
    """The frontiers of a report, and the gaps of the pairs that it shows."""

    frontiers: Frontiers
    gaps: Sequence[Gap]

    @property
    def pairs(self) -> dict[str, str]:
        """The pairs that have a gap or a bound, by their names, with their titles."""
        return {pair_name(gap): pair_title(gap) for gap in self.gaps}


def found(frontiers: Frontiers, answers: Sequence[Answer]) -> Found | None:
    """The gap of each pair at each budget that both have; first of the pairs that hypotheses are about.

    None without frontiers.
    """
    if not frontiers.methods:
        return None
    asked = [(row["first"], row["second"]) for answer in answers for row in answer.more.get("gaps", ())]
    gaps = [
        frontiers.gap(first, second, budget, by_family=True)
        for first, second in pairs(frontiers.methods, asked)
        for budget in frontiers.budgets
        if frontiers.cells(first, budget) and frontiers.cells(second, budget)
    ]
    return Found(frontiers, gaps)


def pair_name(gap: Gap) -> str:
    return f"{gap.first} - {gap.second}"


def pair_title(gap: Gap) -> str:
    """`TIES minus CT-then-SFT`"""
    return f"{label(gap.first)} minus {label(gap.second)}"


def curves(frontiers: Frontiers) -> list[Knob]:
    """Every point of every method, over all the seeds that its points share."""
    listed = []
    for method in frontiers.methods:
        for budget in frontiers.budgets:
            listed += frontiers.curve(method, budget, frontiers.seeds(frontiers.cells(method, budget).values()))
    return listed


def to_csv(frontiers: Frontiers) -> str:
    """frontier.csv: one row per knob value and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for knob in curves(frontiers):
        for seed in sorted(frontiers.seeds([knob.cell])):
            scores = [
                _value(evidence, knob, kind, {seed}) for evidence in (frontiers.dev, frontiers.test) for kind in KINDS
            ]
            writer.writerow([knob.method, knob.text, knob.ct_tokens, seed, *scores, str(knob.pruned).lower()])
    return text.getvalue()


def to_json(shown: Found) -> list[dict[str, Any]]:
    """The rows of gaps.json: gaps, and at which knob values of the one the other method would have the same bits."""
    return [
        {
            **gap_row(gap),
            "same_bits": {
                of: {text: value and round(value, 6) for text, value in matched.items()}
                for of, other in ((gap.first, gap.second), (gap.second, gap.first))
                if (matched := shown.frontiers.matching(other, of, gap.ct_tokens))
            },
        }
        for gap in shown.gaps
    ]


def tables(shown: Found | None, answers: Sequence[Answer]) -> dict[str, Table]:
    """What the charts are drawn from, empty without frontiers."""
    gaps = shown.gaps if shown else []
    along: list[tuple[Value, ...]] = []
    totals: list[tuple[Value, ...]] = []
    windows: list[tuple[Value, ...]] = []
    for gap in gaps:
        if shown and gap.window and gap.estimate:
            name, low, high = pair_name(gap), *(round(end, DIGITS) for end in gap.window)
            windows.append((name, gap.ct_tokens, low, high))
            totals.append((name, gap.ct_tokens, low, *_numbers(gap.estimate)))
            along += [
                (name, gap.ct_tokens, round(bits, DIGITS), *_numbers(estimate))
                for bits, estimate in shown.frontiers.along(gap.first, gap.second, gap.ct_tokens)
            ]
    return {
        "frontiers": _points(shown.frontiers) if shown else Table(POINTS, []),
        "windows": Table(("pair", "tokens", "low", "high"), windows),
        "gap": Table(("pair", "tokens", "bits", "value", "low", "high"), along),
        "totals": Table(("pair", "tokens", "bits", "value", "low", "high"), totals),
        "forest": _forest(gaps, answers),
    }


POINTS = ("method", "tokens", "knob", "seed", "bits", "accuracy", "kind")


def _points(frontiers: Frontiers) -> Table:
    """On test: the mean of every knob value over seeds (kind: kept or pruned), and every seed."""
    rows: list[tuple[Value, ...]] = []
    for knob in curves(frontiers):
        seeds = frontiers.seeds(frontiers.cells(knob.method, knob.ct_tokens).values())
        head = (knob.method, knob.ct_tokens, knob.text)
        groups: list[tuple[str, str, Collection[int]]] = [("all", "pruned" if knob.pruned else "kept", seeds)]
        if len(seeds) > 1:
            groups += [(str(seed), "seed", {seed}) for seed in sorted(seeds)]
        for name, kind, of in groups:
            accuracy, bits = (_value(frontiers.test, knob, what, of) for what in KINDS)
            rows.append((*head, name, bits, accuracy, kind))
    return Table(POINTS, rows)


def _value(evidence: Evidence, knob: Knob, kind: Kind, seeds: Collection[int]) -> float:
    estimate = evidence.combination([(kind, None, knob.cell, 1.0)], seeds)
    assert estimate is not None, "a point of a curve was measured"
    return round(estimate.value, 6)


FOREST = ("row", "tokens", "family", "value", "low", "high", "low_holm", "high_holm", "mde", "verdict", "note")


def _forest(gaps: Sequence[Gap], answers: Sequence[Answer]) -> Table:
    """A row per pair and budget, and one per family: D, its interval, that of Holm where it is a primary hypothesis."""
    rows: list[tuple[Value, ...]] = []
    decided = _decided(answers)
    for gap in gaps:
        pair = f"{budget_name(gap.ct_tokens)}: {label(gap.first)} \u2212 {label(gap.second)}"
        if gap.estimate is None:
            note = NO_SHARED_BITS if gap.separate else gap.missing
            row = f"{pair}, {note.rstrip('.')}"
            rows.append((row, gap.ct_tokens, "all", None, None, None, None, None, None, "", note))
            continue
        answer = decided.get((gap.first, gap.second, gap.ct_tokens))
        strict = tuple(answer.more.get(end) for end in ("low_holm", "high_holm")) if answer else (None, None)
        mde = round(gap.estimate.mde, DIGITS) if gap.estimate.seeds > 1 else None
        verdict = answer.verdict if answer else "exploratory"
        note = "bits per byte differ on test" if gap.slipped else ""
        row = ", ".join(filter(None, (pair, verdict, note)))
        rows.append((row, gap.ct_tokens, "all", *_numbers(gap.estimate), *strict, mde, verdict, note))
        rows += [
            (row, gap.ct_tokens, family, *_numbers(estimate), None, None, None, "", "")
            for family, estimate in (gap.families or {}).items()
        ]
    return Table(FOREST, rows)


def _decided(answers: Sequence[Answer]) -> Mapping[tuple[str, str, int], Answer]:
    """The answers about one gap of the mean accuracy, by its methods and budget."""
    alone = [(answer, answer.more["gaps"]) for answer in answers if len(answer.more.get("gaps", ())) == 1]
    return {
        (row["first"], row["second"], row["ct_tokens"]): answer
        for answer, (row,) in alone
        if row["gap"] and answer.estimate and answer.estimate.value == row["gap"]["value"]
    }


def _numbers(estimate: Estimate) -> list[float | None]:
    return [
        None if abs(value) == float("inf") else round(value, DIGITS)
        for value in (estimate.value, estimate.low, estimate.high)
    ]
