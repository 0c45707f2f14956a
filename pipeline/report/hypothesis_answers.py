"""Answers to the hypotheses of an experiment: one function per type, then Holm over the primary ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.units import format_tokens
from pipeline.report import hypotheses
from pipeline.report.claims import Answer, Claim
from pipeline.report.formatting import UNITS, budget_name, by_part, label
from pipeline.report.frontier import Frontiers, Separate, by_cell, cell_of, gap_terms, knob_text, on_test
from pipeline.report.gaps import ends, gap_row, gap_text
from pipeline.report.hypotheses import (
    AnyHypothesis,
    ContrastHypothesis,
    GapHypothesis,
    ScoreTerm,
    SeparateHypothesis,
    named_in,
    of_report,
    read,
)
from pipeline.report.inference import LEVEL, Estimate, Parts, Verdict, holm, levels, two_way_clustered, verdict
from pipeline.report.merges import Discarded
from pipeline.report.paired import LOWER_IS_BETTER, MARGINS, Cell, Evidence, Term
from pipeline.report.records import Evaluation, FrontierPoint

Weighted = list[tuple[Cell, float]]


@dataclass(frozen=True)
class HypothesisData:
    """The data that decide hypotheses. evidence: of the report's methods and of every knob value.

    of_languages: the same in other languages, filled as hypotheses need them.
    """

    evidence: Evidence
    frontiers: Frontiers
    discarded: Sequence[Discarded] = ()
    of_languages: dict[str, Evidence] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        evaluations: Sequence[Evaluation],
        points: Sequence[FrontierPoint],
        discarded: Sequence[Discarded],
        language: str,
    ) -> HypothesisData:
        """Return the data of a report."""
        evidence = Evidence([*evaluations, *on_test(points)], language)
        return cls(evidence, Frontiers(points, language), discarded)

    def in_language(self, language: str | None) -> Evidence:
        """Return the scores in a language; None: the one that the models are adapted to."""
        if language in (None, self.evidence.language):
            return self.evidence
        if language not in self.of_languages:
            checkpoints = self.evidence.folders.items()
            self.of_languages[language] = Evidence(
                [Evaluation(*cell, folder) for cell, folder in checkpoints], language
            )
        return self.of_languages[language]


@dataclass(frozen=True)
class Outcome:
    """The effect of one hypothesis: an estimate, its p-value for Holm, and the verdict at two levels.

    The levels: of a difference, and of what rests on the margin. parts: the same statistic in each task.
    """

    estimate: Estimate | None
    text: str
    p: float = 1.0
    judge: Callable[[float, float], Verdict] = lambda level, strict: "inconclusive"
    more: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts = field(default_factory=Parts)


def answers(path: Path, data: HypothesisData, regime: str | None = None, beside: Collection[str] = ()) -> list[Answer]:
    """Return the answer to each hypothesis of a file that belongs to a report (`hypotheses.of_report`).

    A hypothesis that is secondary, or that is younger than its scores, has an estimate and no verdict.
    """
    times = hypotheses.commit_times(path)
    asked = of_report(read(path), regime, beside)
    outcomes = [(one, _outcome(one, data), _stated(one, data, times)) for one in asked]
    judged = [one.role == "primary" and outcome.estimate and when.when != "after" for one, outcome, when in outcomes]
    ps = [outcome.p for (_, outcome, _), counts in zip(outcomes, judged, strict=True) if counts]
    adjusted, at = iter(holm(ps)), iter(levels(ps))
    strictest = LEVEL / max(1, len(ps))
    listed = []
    for (one, outcome, when), counts in zip(outcomes, judged, strict=True):
        claim = Claim(
            id=one.id,
            text=one.statement,
            source=one.source,
            statistic=_statistic(one),
            margin=one.margin,
            unit=UNITS["accuracy" if isinstance(one, GapHypothesis) else one.kind],
        )
        estimate, p = outcome.estimate, None
        decided: dict[str, Any] = {"refuted": None}
        given: Verdict = "no data" if estimate is None else "exploratory"
        if estimate is not None and counts:
            level, p = next(at), next(adjusted)
            given = outcome.judge(level, strictest)
            decided = {"level": level, "refuted": given in one.refuted_by, **ends(estimate.at(level), "_holm")}
        more = {"role": one.role, "stated": when.when, "expected": one.expected, "refuted_by": list(one.refuted_by)}
        listed.append(
            Answer(
                claim=claim,
                verdict=given,
                estimate=estimate,
                p_adjusted=p,
                text=f"{outcome.text} {when.text}",
                more={**more, **decided, **outcome.more},
                parts=outcome.parts,
            )
        )
    return listed


def judged_at(estimate: Estimate, margin: float, level: float, strict: float) -> Verdict:
    """Return the verdict of one of several hypotheses.

    level: of its difference, by Holm. strict: of the interval that equivalent and ruled out rest on, LEVEL divided by
    the number of hypotheses. Were equivalence among Holm's steps, it would raise the level of the other differences:
    with errors of a quarter of the margin, a quarter of reports would find a difference between equal methods.
    """
    adjusted = min(1.0, estimate.p * LEVEL / level)
    judged = verdict(estimate.at(strict), margin, adjusted)
    differs = adjusted < LEVEL and estimate.value < 0 and estimate.seeds > 1
    return "contradicted" if differs and judged != "equivalent" else judged


def _plain(estimate: Estimate | None, margin: float, text: str, more: Mapping[str, Any]) -> Outcome:
    """Return an outcome judged by its interval alone."""
    if estimate is None:
        return Outcome(None, text, more=more)
    p = estimate.p if estimate.seeds > 1 else 1.0
    return Outcome(estimate, text, p, lambda level, strict: judged_at(estimate, margin, level, strict), more)


def _outcome(one: AnyHypothesis, data: HypothesisData) -> Outcome:
    if isinstance(one, GapHypothesis):
        return _gap(one, data)
    if isinstance(one, SeparateHypothesis):
        return _separate(one, data)
    return _count(one, data) if one.kind == "lost_top_share" else _contrast(one, data)


def _gap(one: GapHypothesis, data: HypothesisData) -> Outcome:
    frontiers = data.frontiers
    seeds = _seeds_of_all(one, frontiers)
    gaps = [(frontiers.gap(*term.names, term.budget, one.price, seeds, by_family=True), term) for term in one.terms]
    rows = {"gaps": [gap_row(gap, term.weight) for gap, term in gaps]}
    text = " ".join(gap_text(gap) for gap, _ in gaps)
    if len(gaps) == 1 and (separate := gaps[0][0].separate) and one.family is None:
        # terms with a negative weight ask about the second method
        first = one.terms[0].names[0 if one.terms[0].weight > 0 else 1]
        return _bound(separate, first, "accuracy", f"{text} The verdict rests on this bound.", rows)
    weighted: list[tuple[float, Weighted, Weighted]] = []
    for gap, term in gaps:
        match = frontiers.match(gap.first, gap.second, gap.ct_tokens, seeds)
        if gap.estimate is None or isinstance(match, str):
            return Outcome(None, text, more=rows)
        first_side, second_side = frontiers.weights(match, *match.window)
        weighted.append((term.weight, by_cell(first_side), by_cell(second_side)))

    def summed(of_family: str | None) -> Estimate | None:
        summands: list[Term] = [
            (kind, family, cell, scale * weight)
            for scale, first, second in weighted
            for kind, family, cell, weight in gap_terms(first, second, one.price, of_family)
        ]
        return frontiers.test.combination(summands, seeds)

    estimate = summed(one.family)
    outcome = replace(_plain(estimate, one.margin, text, rows), parts=_by_family(one, frontiers.test, summed))
    if any(gap.slipped for gap, _ in gaps) and estimate is not None:
        return replace(
            outcome, p=1.0, judge=lambda level, strict: "inconclusive", text=f"{text} So the matching failed."
        )
    return outcome


def _by_family(
    one: GapHypothesis | ContrastHypothesis, evidence: Evidence, estimate: Callable[[str], Estimate | None]
) -> Parts:
    """Return the same statistic in each family of tasks; empty if the hypothesis is about one of them."""
    effects = [(family, estimate(family)) for family in evidence.families if one.family is None]
    return Parts("task", tuple((family, effect) for family, effect in effects if effect is not None))


def _seeds_of_all(one: GapHypothesis, frontiers: Frontiers) -> frozenset[int]:
    """Return the seeds that every knob value of every term has, so that all terms are of the same seeds."""
    cells = [
        cell for term in one.terms for method in term.names for cell in frontiers.cells(method, term.budget).values()
    ]
    return frontiers.seeds(cells, one.seeds)


def _separate(one: SeparateHypothesis, data: HypothesisData) -> Outcome:
    first, second = one.methods
    gap = data.frontiers.gap(first, second, one.budget, seeds=one.seeds)
    rows = {"gaps": [gap_row(gap)]}
    if gap.separate is None:
        shared = " They share bits, so that only their gap can be claimed." if gap.window else ""
        return Outcome(None, f"{gap_text(gap)}{shared}", more=rows)
    return _bound(gap.separate, first, one.kind, gap_text(gap), rows)


def _bound(separate: Separate, first: str, kind: str, text: str, rows: Mapping[str, Any]) -> Outcome:
    """Test whether the method of fewer bits is more accurate too, or (kind=bits) no less accurate: both must hold.

    So only the method of fewer bits can win; a trade-off is inconclusive.
    """
    floor = 0.0 if kind == "accuracy" else -MARGINS["accuracy"]
    leads = separate.left == first
    gained = separate.accuracy if kind == "accuracy" else separate.bits
    p = max(separate.bits.p_above(0.0), separate.accuracy.p_above(floor))  # intersection-union
    usable = gained.seeds > 1 and not (kind == "accuracy" and separate.falls)

    def judge(level: float, strict: float) -> Verdict:
        if usable and p < level:
            return "supported" if leads else "contradicted"
        return "inconclusive"

    estimate = gained if leads else gained.negated
    return Outcome(estimate, text, p if usable else 1.0, judge, {**rows, "bound": True})


def _contrast(one: ContrastHypothesis, data: HypothesisData) -> Outcome:
    kind = one.kind
    assert kind != "lost_top_share"
    evidence = data.in_language(one.language)
    cells = [_cell(term, evidence) for term in one.terms]
    lost = [term for term, cell in zip(one.terms, cells, strict=True) if cell is None]
    if lost:
        knob = f" with {knob_text(lost[0].knob)}" if lost[0].knob else ""
        where = f"{label(lost[0].name)} at {budget_name(lost[0].budget)}{knob}"
        return Outcome(None, f"Not computed: it needs scores of {where}.")
    known = [cell for cell in cells if cell is not None]

    def summed(of_family: str | None) -> Estimate | None:
        terms: list[Term] = [(kind, of_family, cell, term.weight) for term, cell in zip(one.terms, known, strict=True)]
        return evidence.combination(terms, one.seeds)

    estimate = summed(one.family)
    if estimate is None:
        return Outcome(None, "Not computed: its terms share no seed, or one of them has no such score.")
    each = [evidence.combination([(kind, one.family, cell, 1.0)], one.seeds) for cell in known]
    values = [(term, value.value) for term, value in zip(one.terms, each, strict=True) if value]
    parts = _by_family(one, evidence, summed)
    text = f"{_listed(values)}. {by_part(parts)}".strip()
    return replace(_plain(estimate, one.margin, text, {}), parts=parts)


def _count(one: ContrastHypothesis, data: HypothesisData) -> Outcome:
    """Return a weighted sum of shares of parameters. They are counted, not sampled: only seeds vary."""
    counted = {(merge.method, merge.ct_tokens): merge.lost_top for merge in data.discarded}
    if lost := [term for term in one.terms if (term.name, term.budget) not in counted]:
        audit = f"{label(lost[0].name)} at {budget_name(lost[0].budget)}"
        return Outcome(None, f"Not computed: it needs the audit of {audit}.")
    shares = [counted[term.name, term.budget] for term in one.terms]
    seeds = sorted(set.intersection(*(set(each) for each in shares)).intersection(one.seeds or shares[0]))
    if not seeds:
        return Outcome(None, "Not computed: its terms share no seed.")
    values = [sum(term.weight * each[seed] for term, each in zip(one.terms, shares, strict=True)) for seed in seeds]
    means = [float(np.mean([each[seed] for seed in seeds])) for each in shares]
    estimate = two_way_clustered(values, np.zeros((len(values), 0)), len(values))
    return _plain(estimate, one.margin, f"{_listed(list(zip(one.terms, means, strict=True)))}.", {})


def _cell(term: ScoreTerm, evidence: Evidence) -> Cell | None:
    if term.knob is None:
        return evidence.cell(term.name, term.budget)
    cell = cell_of(term.name, term.budget, term.knob)
    return cell if evidence.has(*cell) else None


def _listed(values: Sequence[tuple[ScoreTerm, float]]) -> str:
    """Format `TIES (lambda 1.5) at 450k 0.351 (weight +1)`, ..."""
    return "; ".join(
        f"{cell_of(label(term.name), term.budget, term.knob)[0] if term.knob else label(term.name)} at "
        f"{budget_name(term.budget)} {value:.3f} (weight {term.weight:+g})"
        for term, value in values
    )


def _stated(one: AnyHypothesis, data: HypothesisData, times: Mapping[str, Any] | None) -> hypotheses.Stated:
    """Return whether it was committed before the scores of the methods, budgets and seeds that it is about."""
    about = {(method, budget) for method, budget in named_in(one)}
    about |= {cell for method, budget in about for cell in data.frontiers.cells(method, budget).values()}
    folders = [
        folder
        for (method, budget, seed), folder in data.evidence.folders.items()
        if (method, budget) in about and (one.seeds is None or seed in one.seeds)
    ]
    return hypotheses.stated(times.get(one.id) if times is not None else "unknown", hypotheses.first_scored(folders))


def _statistic(one: AnyHypothesis) -> str:
    """Return what is estimated, in words."""
    if isinstance(one, GapHypothesis):
        of = f"accuracy of {one.family}" if one.family else "mean accuracy"
        terms = [
            f"{term.weight:+g} times {label(term.names[0])} minus {label(term.names[1])} at "
            f"{format_tokens(term.budget)}"
            for term in one.terms
        ]
        return f"gap in {of} at equal bits per byte: {', '.join(terms)}; {one.price:g} accuracy per bit of mismatch"
    if isinstance(one, SeparateHypothesis):
        gained = "accuracy at no more bits" if one.kind == "accuracy" else "bits saved at no less accuracy"
        where = format_tokens(one.budget)
        return (
            f"{gained} of {label(one.methods[0])} over {label(one.methods[1])} at {where}, between separate frontiers"
        )
    of = f"{one.kind.replace('_', ' ')}{f' of {one.family}' if one.family else ''}"
    of += f" in {one.language}" if one.language else ""
    return (
        f"weighted sum of {of} over the seeds of all terms{', lower is better' if one.kind in LOWER_IS_BETTER else ''}"
    )
