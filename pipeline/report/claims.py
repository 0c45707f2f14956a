"""Find the effect of each claim in a run's samples and audits: one function per claim."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.report.formatting import ANSWER_BITS, budget_name, by_part, interval, label, percent
from pipeline.report.inference import OLD_VERDICTS, Estimate, Parts, Verdict, holm, two_way_clustered, verdict
from pipeline.report.merges import TOP, Discarded, Selected
from pipeline.report.paired import LOWER_IS_BETTER, MARGINS, Cell, Comparison, Evidence, Kind, compare
from pipeline.report.records import Evaluation, mean

UNMATCHED = "Not computed: it needs TIES with and without slack at the same budget, density and \u03bb."
UNMATCHED_AT_NORM = (
    "Not computed: it needs TIES with and without slack at the same budget, density and norm of the merged update."
)


class Finding(NamedTuple):
    """A claim's statistic, and the numbers behind it in words; without a statistic, what it needs.

    parts: the same statistic in each task or at each budget.
    """

    estimate: Estimate | None
    text: str
    parts: Parts = Parts()


@dataclass(frozen=True)
class Data:
    """All that claims are answered from. leaders: the merge that was best on dev, by budget."""

    evidence: Evidence
    discarded: Sequence[Discarded]
    choices: Sequence[Selected]
    leaders: dict[int, str]


def leader_at(budget: int, choices: Sequence[Selected], evidence: Evidence) -> str | None:
    """The merge with the best score on dev at this budget (mean over seeds), chosen without a look at test items."""
    scores: dict[str, list[float]] = {}
    for choice in choices:
        if choice.leads and choice.ct_tokens == budget and evidence.has(choice.method, budget):
            scores.setdefault(choice.method, []).append(
                -choice.at_budget if choice.metric == "bits_per_byte" else choice.at_budget
            )
    return max(scores, key=lambda method: mean(scores[method])) if scores else None


def gain(
    evidence: Evidence, kind: Kind, first: Sequence[Cell], second: Sequence[Cell], family: str | None = None
) -> Estimate | None:
    """How much better the mean of some (method, budget) is than that of others; of one family of tasks, or of all."""
    estimate = evidence.difference(kind, first, second, family)
    return estimate.negated if estimate is not None and kind in LOWER_IS_BETTER else estimate


def beats(baseline: str, kind: Kind, where: Callable[[Sequence[int]], int] = min) -> Callable[[Data], Finding]:
    """At the smallest budget (where=min: text is scarcest) or the largest: the merge that was best on dev."""

    def answer(data: Data) -> Finding:
        budget = where(data.evidence.budgets or [0])
        leader, reference = data.leaders.get(budget), data.evidence.cell(baseline, budget)
        if leader is None or reference is None:
            return Finding(None, _needs(f"{label(baseline)} and a merge with a score on dev at the same budget"))
        estimate = gain(data.evidence, kind, [(leader, budget)], [reference])
        if estimate is None:
            return Finding(None, _needs(f"{label(baseline)} and a merge of the same seed, scored in this way"))
        merged, other = (data.evidence.value(kind, *cell) for cell in ((leader, budget), reference))
        text = (
            f"At {budget_name(budget)} tokens the merge that was best on dev, {label(leader)}, has {merged:.3f}; "
            f"{label(baseline)} has {other:.3f}. "
        )
        parts = _by_family(data, kind, [(leader, budget)], [reference])
        return Finding(estimate, f"{text}{by_part(parts)}".strip(), parts)

    return answer


def keeps_language(baseline: str) -> Callable[[Data], Finding]:
    """Bits per byte of a baseline minus those of the merge that was best on dev, over all budgets."""

    def answer(data: Data) -> Finding:
        budgets = [budget for budget in data.leaders if data.evidence.has(baseline, budget)]
        merged: list[Cell] = [(data.leaders[budget], budget) for budget in budgets]
        reference: list[Cell] = [(baseline, budget) for budget in budgets]
        estimate = gain(data.evidence, "bits", merged, reference) if budgets else None
        if estimate is None:
            needed = f"{label(baseline)} and a merge with a score on dev at the same budget"
            return Finding(None, _needs(f"held-out text, {needed}"))
        pairs = zip(merged, reference, strict=True)
        each = [(merge[1], gain(data.evidence, "bits", [merge], [other])) for merge, other in pairs]
        return Finding(estimate, f"Bits per byte saved: {_listed_budgets(each)}.", _by_budget(each))

    return answer


def advantage_shrinks(data: Data) -> Finding:
    """The advantage in accuracy at the smallest budget minus that at the largest."""
    budgets = sorted(budget for budget in data.leaders if data.evidence.has("ct_then_sft", budget))
    if len(budgets) < 2:
        return Finding(None, _needs("two budgets with CT-then-SFT and a merge chosen on dev"))
    weights = [
        ((method, budget), side * way)
        for budget, way in ((budgets[0], 1.0), (budgets[-1], -1.0))
        for method, side in ((data.leaders[budget], 1.0), ("ct_then_sft", -1.0))
    ]
    estimate = data.evidence.contrast("accuracy", weights)
    if estimate is None:
        return Finding(None, "The smallest and the largest budget have no seed in common.")
    each = [
        (budget, gain(data.evidence, "accuracy", [(data.leaders[budget], budget)], [("ct_then_sft", budget)]))
        for budget in budgets
    ]
    text = f"Mean accuracy of the merge that was best on dev, minus CT-then-SFT's: {_listed_budgets(each)}."
    return Finding(estimate, text)


def conflicts_grow(data: Data) -> Finding:
    """The share that TIES loses at the largest budget minus that at the smallest, settings else equal, over seeds."""
    plain = [merge for merge in data.discarded if merge.is_plain_ties]
    budgets = sorted({merge.ct_tokens for merge in plain})
    at_first = {merge.method: merge for merge in plain if merge.ct_tokens == budgets[0]}
    # a density that dev chose for a budget changes what is lost there, whatever CT does
    same = [merge for merge in plain if merge.method in at_first and alike(at_first[merge.method], merge)]
    at_last = {merge.method for merge in same if merge.ct_tokens == budgets[-1]}
    if len(budgets) < 2 or not at_last:
        return Finding(None, _needs("TIES without slack at two budgets, of the same settings at both"))
    compared = [merge for merge in same if merge.method in at_last]
    first, last = (
        lost_by_seed([merge for merge in compared if merge.ct_tokens == budget]) for budget in (budgets[0], budgets[-1])
    )
    return Finding(_over_seeds(last, first), f"Lost: {_listed(compared)}.")


def alike(first: Discarded, second: Discarded) -> bool:
    """Whether the recipes of every seed that both have differ in the slack at most."""
    seeds = first.settings_except_slack.keys() & second.settings_except_slack.keys()
    return bool(seeds) and all(
        first.settings_except_slack[seed] == second.settings_except_slack[seed] for seed in seeds
    )


def slack_keeps(data: Data) -> Finding:
    """The share that TIES loses minus that with slack, settings else equal, over seeds."""
    pairs = matched_pairs(data)
    if not pairs:
        return Finding(None, UNMATCHED)
    merges = {(merge.method, merge.ct_tokens): merge for merge in data.discarded}
    slack = [merges[method, budget] for method, _, budget in pairs]
    plain = [merges[method, budget] for _, method, budget in pairs]
    return Finding(_over_seeds(lost_by_seed(plain), lost_by_seed(slack)), f"Lost: {_listed([*plain, *slack])}.")


def slack_helps(kind: Kind, at_norm: bool = False) -> Callable[[Data], Finding]:
    """With slack minus without, settings else equal, mean over the pairs and budgets that there are.

    at_norm: of merges whose step was given a norm. Without, slack changes the length of the step with its direction.
    """

    def answer(data: Data) -> Finding:
        pairs = matched_pairs(data, at_norm)
        with_slack: list[Cell] = [(slack, budget) for slack, _, budget in pairs]
        without: list[Cell] = [(plain, budget) for _, plain, budget in pairs]
        estimate = gain(data.evidence, kind, with_slack, without) if pairs else None
        if estimate is None:
            return Finding(None, UNMATCHED_AT_NORM if at_norm else UNMATCHED)
        budgets = sorted({budget for _, _, budget in pairs})
        each = []
        for budget in budgets:
            first, second = ([cell for cell in side if cell[1] == budget] for side in (with_slack, without))
            each.append((budget, gain(data.evidence, kind, first, second)))
        methods = ", ".join(label(method) for method in dict.fromkeys(method for method, _, _ in pairs))
        by_budget, by_family = _by_budget(each), _by_family(data, kind, with_slack, without)
        text = f"{methods}: {_listed_budgets(each)}. {by_part(by_family)}".strip()
        return Finding(estimate, text, by_budget if by_budget.differ else by_family)

    return answer


def matched_pairs(data: Data, at_norm: bool = False) -> list[tuple[str, str, int]]:
    """(with slack, without, budget) of merges whose recipes differ in the slack alone, for every seed of both.

    Recipes that were tuned apart differ in density and lambda too, and would answer for those. at_norm: of merges whose
    step was given a norm, else of those whose step was not.
    """

    def matched(first: Discarded, second: Discarded) -> bool:
        cells = ((merge.method, merge.ct_tokens) for merge in (first, second))
        seeds = set.intersection(*(data.evidence.seeds(*cell) for cell in cells))
        both = [(first.settings_except_slack.get(seed), second.settings_except_slack.get(seed)) for seed in seeds]
        return bool(both) and all(a is not None and a == b and bool(a.get("norm")) == at_norm for a, b in both)

    plain = [merge for merge in data.discarded if merge.is_plain_ties]
    return [
        (slack.method, other.method, slack.ct_tokens)
        for slack in data.discarded
        for other in plain
        if slack.has_slack_for_sft and slack.ct_tokens == other.ct_tokens and matched(slack, other)
    ]


def lost_by_seed(merges: Sequence[Discarded]) -> dict[int, float]:
    """By seed: the mean share over merges of SFT's most important parameters that was lost in sign conflicts."""
    seeds = set.intersection(*(set(merge.lost_top) for merge in merges))
    return {seed: mean([merge.lost_top[seed] for merge in merges]) for seed in sorted(seeds)}


def _over_seeds(first: dict[int, float], second: dict[int, float]) -> Estimate | None:
    """First minus second, over the seeds of both. Parameters are counted, not sampled: only seeds vary."""
    values = [first[seed] - second[seed] for seed in first if seed in second]
    return two_way_clustered(values, np.zeros((len(values), 0)), len(values)) if values else None


def _needs(what: str) -> str:
    return f"Not computed: it needs {what}."


def _by_family(data: Data, kind: Kind, first: Sequence[Cell], second: Sequence[Cell]) -> Parts:
    """The same difference in each family of tasks, because a mean may hide two of opposite sign."""
    gains = [(family, gain(data.evidence, kind, first, second, family)) for family in data.evidence.families]
    return Parts("task", tuple((family, gained) for family, gained in gains if gained is not None))


def _by_budget(each: Sequence[tuple[int, Estimate | None]]) -> Parts:
    return Parts("CT budget", tuple((budget_name(budget), gained) for budget, gained in each if gained is not None))


def _listed_budgets(each: Sequence[tuple[int, Estimate | None]]) -> str:
    return "; ".join(f"{budget_name(budget)} {interval(gained)}" for budget, gained in each if gained is not None)


def _listed(merges: Sequence[Discarded]) -> str:
    """`TIES: 10.0% at 10k, 20.0% at 100k; TIES + slack 1: …`, means over seeds."""
    by_method: dict[str, dict[int, float]] = {}
    for merge in merges:
        by_method.setdefault(merge.method, {})[merge.ct_tokens] = merge.whole.lost_top
    return "; ".join(
        f"{label(method)}: " + ", ".join(f"{percent(shares[b])} at {budget_name(b)}" for b in sorted(shares))
        for method, shares in by_method.items()
    )


PAPER = "Tao et al., Findings of EMNLP 2024 (arXiv 2407.03994)"
OURS = "our reading of the slack; the paper's formula is not public"
SHARE_MARGIN = 0.01  # of shares of parameters: a difference that would not matter


@dataclass(frozen=True)
class Claim:
    """A claim as it was stated: its text, its source, and the statistic that must be above 0.

    margin: a statistic nearer to 0 than this would not matter. unit: how the effect is written, of claims that have no
    sentence of their own (headline.py).
    """

    id: str
    text: str
    source: str
    statistic: str
    margin: float
    unit: str = ""


@dataclass(frozen=True)
class Answer:
    """The verdict on a claim.

    estimate: of its statistic. p_adjusted: by Holm, for all claims with data. more: further keys of claims.json.
    parts: the same statistic in each task or at each budget.
    """

    claim: Claim
    verdict: Verdict
    estimate: Estimate | None
    p_adjusted: float | None
    text: str
    more: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts = field(default_factory=Parts)


@dataclass(frozen=True)
class Claims:
    answers: list[Answer]
    comparisons: list[Comparison]


def claims(
    evaluations: Iterable[Evaluation], discarded: Sequence[Discarded], choices: Sequence[Selected], language: str
) -> Claims:
    """All answers and all paired comparisons, in the target language."""
    evidence = Evidence(evaluations, language)
    leaders = {budget: leader for budget in evidence.budgets if (leader := leader_at(budget, choices, evidence))}
    data = Data(evidence, discarded, choices, leaders)
    found = [(claim, answer(data)) for claim, answer in STATED]
    adjusted = iter(holm([finding.estimate.p for _, finding in found if finding.estimate is not None]))
    answers = []
    for claim, (estimate, text, parts) in found:
        if estimate is None:
            answers.append(Answer(claim, "no data", None, None, text))
        else:
            p = next(adjusted)
            answers.append(Answer(claim, verdict(estimate, claim.margin, p), estimate, p, text, parts=parts))
    return Claims(answers, compare(evidence))


def as_json(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The rows of claims.json. A claim without data, and an infinite end of an interval, have nulls."""
    rows = []
    for answer in answers:
        claim, estimate = answer.claim, answer.estimate
        numbers: dict[str, float | None] = dict.fromkeys(("effect", "low", "high", "p", "mde"))
        if estimate is not None:
            given = (estimate.value, estimate.low, estimate.high, estimate.p, estimate.mde)
            numbers = {name: value if isfinite(value) else None for name, value in zip(numbers, given, strict=True)}
        rows.append(
            {
                "id": claim.id,
                "claim": claim.text,
                "source": claim.source,
                "statistic": claim.statistic,
                "threshold": 0.0,
                "margin": claim.margin,
                "effect": numbers["effect"],
                "low": numbers["low"],
                "high": numbers["high"],
                "n": estimate.n if estimate else 0,
                "seeds": estimate.seeds if estimate else 0,
                "documents": estimate.documents if estimate else 0,
                "mde": numbers["mde"],
                "p": numbers["p"],
                "p_adjusted": answer.p_adjusted,
                "verdict": answer.verdict,
                **answer.more,
            }
        )
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    """Read a claims.json. Names that it had before 0.2 are replaced, with a line on stderr."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    if any("mdd" in row or row["verdict"] in OLD_VERDICTS for row in rows):
        new = ", ".join(f"{old} = {name}" for old, name in {**OLD_VERDICTS, "mdd": "mde"}.items())
        print(f"{path}: has names of an older version ({new}). `slackmerge report` rewrites it.", file=sys.stderr)
    return [
        {
            {"mdd": "mde"}.get(key, key): OLD_VERDICTS.get(value, value) if key == "verdict" else value
            for key, value in row.items()
        }
        for row in rows
    ]


READINGS = "mean over budgets and the variants of slack that were run"
SCARCE = "at the smallest CT budget, of the merge that was best on dev against"
AVERAGE = "the average of CT-then-SFT and CT"
STATED: tuple[tuple[Claim, Callable[[Data], Finding]], ...] = (
    (
        Claim(
            "scarce-accuracy",
            "Merges are more accurate than CT-then-SFT at the smallest CT budget.",
            PAPER,
            f"gain in mean accuracy {SCARCE} CT-then-SFT",
            MARGINS["accuracy"],
        ),
        beats("ct_then_sft", "accuracy"),
    ),
    (
        Claim(
            "scarce-answer-bits",
            "Merges make the correct answers more likely than CT-then-SFT does at the smallest CT budget.",
            PAPER,
            f"{ANSWER_BITS} saved {SCARCE} CT-then-SFT",
            MARGINS["answer_bits"],
        ),
        beats("ct_then_sft", "answer_bits"),
    ),
    (
        Claim(
            "language-kept",
            "Merges model the language better than CT-then-SFT.",
            "ours",
            "bits per byte of text saved, mean over budgets, of the merge that was best on dev against CT-then-SFT",
            MARGINS["bits"],
        ),
        keeps_language("ct_then_sft"),
    ),
    (
        Claim(
            "averaged-accuracy",
            "Merges are more accurate than the average of CT-then-SFT and CT at the smallest CT budget.",
            "ours",
            f"gain in mean accuracy {SCARCE} {AVERAGE}",
            MARGINS["accuracy"],
        ),
        beats("average_of_ct_then_sft_and_ct", "accuracy"),
    ),
    (
        Claim(
            "averaged-language-kept",
            "Merges model the language better than the average of CT-then-SFT and CT.",
            "ours",
            f"bits per byte of text saved, mean over budgets, of the merge that was best on dev against {AVERAGE}",
            MARGINS["bits"],
        ),
        keeps_language("average_of_ct_then_sft_and_ct"),
    ),
    (
        Claim(
            "merging-uses-ct",
            "Merges gain from CT: they are more accurate than the average of base and SFT, which needs no CT.",
            "ours",
            "gain in mean accuracy at the largest CT budget, of the merge that was best on dev against that average",
            MARGINS["accuracy"],
        ),
        beats("average_of_base_and_sft", "accuracy", max),
    ),
    (
        Claim(
            "advantage-shrinks",
            "The advantage of merges over CT-then-SFT shrinks as the CT budget grows.",
            PAPER,
            "advantage in mean accuracy at the smallest budget minus that at the largest",
            MARGINS["accuracy"],
        ),
        advantage_shrinks,
    ),
    (
        Claim(
            "conflicts-grow",
            "TIES discards more of SFT's important parameters as the CT budget grows.",
            PAPER,
            f"share of SFT's top {TOP} lost in sign conflicts at the largest budget minus that at the smallest, "
            "by TIES of the same settings",
            SHARE_MARGIN,
        ),
        conflicts_grow,
    ),
    (
        Claim(
            "slack-keeps",
            "Slack keeps more of SFT's important parameters than TIES.",
            OURS,
            f"share of SFT's top {TOP} lost in sign conflicts by TIES minus that with slack, settings else the same, "
            f"{READINGS}",
            SHARE_MARGIN,
        ),
        slack_keeps,
    ),
    (
        Claim(
            "slack-accuracy",
            "Slack raises accuracy.",
            PAPER,
            f"gain in mean accuracy with slack, TIES else of the same settings, {READINGS}",
            MARGINS["accuracy"],
        ),
        slack_helps("accuracy"),
    ),
    (
        Claim(
            "slack-answer-bits",
            "Slack makes the correct answers more likely.",
            PAPER,
            f"{ANSWER_BITS} saved with slack, TIES else of the same settings, {READINGS}",
            MARGINS["answer_bits"],
        ),
        slack_helps("answer_bits"),
    ),
    (
        Claim(
            "slack-norm-accuracy",
            "Slack raises accuracy when all merged updates have the same norm.",
            OURS,
            f"gain in mean accuracy with slack, TIES else of the same settings and norm of the update, {READINGS}",
            MARGINS["accuracy"],
        ),
        slack_helps("accuracy", at_norm=True),
    ),
    (
        Claim(
            "slack-norm-answer-bits",
            "Slack makes the correct answers more likely when all merged updates have the same norm.",
            OURS,
            f"{ANSWER_BITS} saved with slack, TIES else of the same settings and norm, {READINGS}",
            MARGINS["answer_bits"],
        ),
        slack_helps("answer_bits", at_norm=True),
    ),
)
