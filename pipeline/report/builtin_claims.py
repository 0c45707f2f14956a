"""The built-in claims, which were stated before looking at test scores, and their verdicts.

A new claim is a row of STATED and a function that finds its effect in a run's samples and audits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.report.claims import Answer, Claim, Claims, Clauses
from pipeline.report.formatting import ANSWER_BITS, SHARE_OF_TOP, budget_name, by_part, interval, label, percent
from pipeline.report.inference import Estimate, Parts, holm, two_way_clustered, verdict
from pipeline.report.merges import TOP, Discarded, Selected
from pipeline.report.paired import LOWER_IS_BETTER, MARGINS, Cell, Evidence, Kind, compare
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
class ClaimData:
    """All that claims are answered from. leaders: the merge that was best on dev, by budget."""

    evidence: Evidence
    discarded: Sequence[Discarded]
    choices: Sequence[Selected]
    leaders: dict[int, str]


Answerer = Callable[[ClaimData], Finding]


def leader_at(budget: int, choices: Sequence[Selected], evidence: Evidence) -> str | None:
    """Return the merge with the best score on dev at a budget (mean over seeds); no test item plays a part."""
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
    """Return how much better the mean of some cells is than that of others, in one family of tasks or in all."""
    estimate = evidence.difference(kind, first, second, family)
    return estimate.negated if estimate is not None and kind in LOWER_IS_BETTER else estimate


def beats(baseline: str, kind: Kind, where: Callable[[Sequence[int]], int] = min) -> Answerer:
    """Compare the merge that was best on dev with a baseline, at the smallest budget (where=min) or the largest."""

    def answer(data: ClaimData) -> Finding:
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


def keeps_language(baseline: str) -> Answerer:
    """Compare the bits per byte of a baseline with those of the merge that was best on dev, over all budgets."""

    def answer(data: ClaimData) -> Finding:
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


def advantage_shrinks(data: ClaimData) -> Finding:
    """Compare the advantage of merges in accuracy at the smallest budget with that at the largest."""
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


def conflicts_grow(data: ClaimData) -> Finding:
    """Compare the share that TIES loses at the largest budget with that at the smallest, at equal settings."""
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
    """Return whether the recipes of two merges differ in the slack at most, for every seed of both."""
    seeds = first.settings_except_slack.keys() & second.settings_except_slack.keys()
    return bool(seeds) and all(
        first.settings_except_slack[seed] == second.settings_except_slack[seed] for seed in seeds
    )


def slack_keeps(data: ClaimData) -> Finding:
    """Compare the share that TIES loses with that of TIES with slack, at equal settings."""
    pairs = matched_pairs(data)
    if not pairs:
        return Finding(None, UNMATCHED)
    merges = {(merge.method, merge.ct_tokens): merge for merge in data.discarded}
    slack = [merges[method, budget] for method, _, budget in pairs]
    plain = [merges[method, budget] for _, method, budget in pairs]
    return Finding(_over_seeds(lost_by_seed(plain), lost_by_seed(slack)), f"Lost: {_listed([*plain, *slack])}.")


def slack_helps(kind: Kind, at_norm: bool = False) -> Answerer:
    """Compare merges with slack and without at equal settings, mean over all pairs and budgets.

    at_norm: of merges whose step was given a norm. Without, slack changes the length of the step with its direction.
    """

    def answer(data: ClaimData) -> Finding:
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


def matched_pairs(data: ClaimData, at_norm: bool = False) -> list[tuple[str, str, int]]:
    """Return (with slack, without, budget) for merges whose recipes differ in the slack alone, for every seed of both.

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
    """Return by seed the share of SFT's most important parameters lost in sign conflicts, mean over merges."""
    seeds = set.intersection(*(set(merge.lost_top) for merge in merges))
    return {seed: mean([merge.lost_top[seed] for merge in merges]) for seed in sorted(seeds)}


def _over_seeds(first: dict[int, float], second: dict[int, float]) -> Estimate | None:
    """Return first minus second, over the seeds of both. Parameters are counted, not sampled: only seeds vary."""
    values = [first[seed] - second[seed] for seed in first if seed in second]
    return two_way_clustered(values, np.zeros((len(values), 0)), len(values)) if values else None


def _needs(what: str) -> str:
    return f"Not computed: it needs {what}."


def _by_family(data: ClaimData, kind: Kind, first: Sequence[Cell], second: Sequence[Cell]) -> Parts:
    """Return the same difference in each family of tasks: a mean may hide two of opposite sign."""
    gains = [(family, gain(data.evidence, kind, first, second, family)) for family in data.evidence.families]
    return Parts("task", tuple((family, gained) for family, gained in gains if gained is not None))


def _by_budget(each: Sequence[tuple[int, Estimate | None]]) -> Parts:
    return Parts("CT budget", tuple((budget_name(budget), gained) for budget, gained in each if gained is not None))


def _listed_budgets(each: Sequence[tuple[int, Estimate | None]]) -> str:
    return "; ".join(f"{budget_name(budget)} {interval(gained)}" for budget, gained in each if gained is not None)


def _listed(merges: Sequence[Discarded]) -> str:
    """Format `TIES: 10.0% at 10k, 20.0% at 100k; TIES + slack 1: …`, means over seeds."""
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
RIVALS = {  # in sentences
    "ct_then_sft": "CT-then-SFT",
    "average_of_ct_then_sft_and_ct": "the average of CT-then-SFT and CT",
    "average_of_base_and_sft": "the average of base and SFT",
}
WHERE = {
    "smallest": " at the smallest CT budget",
    "largest": " at the largest CT budget",
    "mean": ", mean over budgets",
}
SLACK_MEAN = "mean over budgets and the variants of slack that were run"


class Quality(NamedTuple):
    """What a kind of score is called as an effect and as a unit, and verbs for better, no better and worse."""

    effect: str
    unit: str
    better: str
    no_better: str
    worse: str


QUALITIES: dict[Kind, Quality] = {
    "accuracy": Quality(
        "gain in mean accuracy", "in accuracy", "is more accurate", "is not more accurate", "is less accurate"
    ),
    "answer_bits": Quality(
        f"{ANSWER_BITS} saved",
        f"{ANSWER_BITS} saved",
        "makes the correct answers more likely",
        "does not make the correct answers more likely",
        "makes the correct answers less likely",
    ),
    "bits": Quality(
        "bits per byte of text saved",
        "bits per byte of text saved",
        "models the language better",
        "does not model the language better",
        "models the language worse",
    ),
}
RAISES = ("raises accuracy", "does not raise accuracy", "lowers accuracy")


def _merging(
    id: str, text: str, kind: Kind, where: str, baseline: str, source: str = "ours", that: str = ""
) -> tuple[Claim, Answerer]:
    """Return the claim that the merge that was best on dev is better than a baseline.

    where: the CT budget, smallest or largest, or the mean over budgets. that: the baseline in the statistic.
    """
    quality, rival = QUALITIES[kind], RIVALS[baseline]
    claim = Claim(
        id=id,
        text=text,
        source=source,
        statistic=f"{quality.effect}{WHERE[where]}, of the merge that was best on dev against {that or rival}",
        margin=MARGINS[kind],
        unit=quality.unit,
        clauses=Clauses(
            where=where,
            supported=f"merging {quality.better} than {rival}",
            equivalent=f"merging and {rival} are equivalent in {'accuracy' if kind == 'accuracy' else 'bits per byte'}",
            ruled_out=f"merging {quality.no_better} than {rival}",
            contradicted=f"merging {quality.worse} than {rival}",
        ),
    )
    if where == "mean":
        return claim, keeps_language(baseline)
    return claim, beats(baseline, kind, min if where == "smallest" else max)


def _slack(id: str, text: str, kind: Kind, source: str, at_norm: str = "") -> tuple[Claim, Answerer]:
    """Return the claim that slack helps. at_norm: what the statistic of merges of the same norm adds."""
    quality = QUALITIES[kind]
    better, no_better, worse = RAISES if kind == "accuracy" else (quality.better, quality.no_better, quality.worse)
    at = " at equal norm of the merged updates" if at_norm else ""
    what = "accuracy" if kind == "accuracy" else ANSWER_BITS
    claim = Claim(
        id=id,
        text=text,
        source=source,
        statistic=f"{quality.effect} with slack, TIES else of the same settings{at_norm}, {SLACK_MEAN}",
        margin=MARGINS[kind],
        unit=quality.unit,
        clauses=Clauses(
            where="mean",
            supported=f"slack {better}{at}",
            equivalent=f"slack makes no meaningful difference to {what}{at}",
            ruled_out=f"slack {no_better}{at}",
            contradicted=f"slack {worse}{at}",
        ),
    )
    return claim, slack_helps(kind, bool(at_norm))


STATED: tuple[tuple[Claim, Answerer], ...] = (
    _merging(
        id="scarce-accuracy",
        text="Merges are more accurate than CT-then-SFT at the smallest CT budget.",
        kind="accuracy",
        where="smallest",
        baseline="ct_then_sft",
        source=PAPER,
    ),
    _merging(
        id="scarce-answer-bits",
        text="Merges make the correct answers more likely than CT-then-SFT does at the smallest CT budget.",
        kind="answer_bits",
        where="smallest",
        baseline="ct_then_sft",
        source=PAPER,
    ),
    _merging("language-kept", "Merges model the language better than CT-then-SFT.", "bits", "mean", "ct_then_sft"),
    _merging(
        id="averaged-accuracy",
        text="Merges are more accurate than the average of CT-then-SFT and CT at the smallest CT budget.",
        kind="accuracy",
        where="smallest",
        baseline="average_of_ct_then_sft_and_ct",
    ),
    _merging(
        id="averaged-language-kept",
        text="Merges model the language better than the average of CT-then-SFT and CT.",
        kind="bits",
        where="mean",
        baseline="average_of_ct_then_sft_and_ct",
    ),
    _merging(
        id="merging-uses-ct",
        text="Merges gain from CT: they are more accurate than the average of base and SFT, which needs no CT.",
        kind="accuracy",
        where="largest",
        baseline="average_of_base_and_sft",
        that="that average",
    ),
    (
        Claim(
            id="advantage-shrinks",
            text="The advantage of merges over CT-then-SFT shrinks as the CT budget grows.",
            source=PAPER,
            statistic="advantage in mean accuracy at the smallest budget minus that at the largest",
            margin=MARGINS["accuracy"],
            unit=QUALITIES["accuracy"].unit,
            clauses=Clauses(
                where="",
                supported="the advantage of merging over CT-then-SFT shrinks as the CT budget grows",
                equivalent="the advantage of merging over CT-then-SFT is the same at the smallest and the largest CT "
                "budget",
                ruled_out="the advantage of merging over CT-then-SFT does not shrink as the CT budget grows",
                contradicted="the advantage of merging over CT-then-SFT grows with the CT budget",
            ),
        ),
        advantage_shrinks,
    ),
    (
        Claim(
            id="conflicts-grow",
            text="TIES discards more of SFT's important parameters as the CT budget grows.",
            source=PAPER,
            statistic=f"share of SFT's top {TOP} lost in sign conflicts at the largest budget minus that at the "
            "smallest, by TIES of the same settings",
            margin=SHARE_MARGIN,
            unit=SHARE_OF_TOP,
            clauses=Clauses(
                where="",
                supported="TIES discards more of SFT's important parameters as the CT budget grows",
                equivalent="TIES discards as many of SFT's important parameters at the largest CT budget as at the "
                "smallest",
                ruled_out="TIES does not discard more of SFT's important parameters as the CT budget grows",
                contradicted="TIES discards fewer of SFT's important parameters as the CT budget grows",
            ),
        ),
        conflicts_grow,
    ),
    (
        Claim(
            id="slack-keeps",
            text="Slack keeps more of SFT's important parameters than TIES.",
            source=OURS,
            statistic=f"share of SFT's top {TOP} lost in sign conflicts by TIES minus that with slack, settings else "
            f"the same, {SLACK_MEAN}",
            margin=SHARE_MARGIN,
            unit=SHARE_OF_TOP,
            clauses=Clauses(
                where="mean",
                supported="slack keeps more of SFT's important parameters than TIES",
                equivalent="slack and TIES keep as many of SFT's important parameters",
                ruled_out="slack does not keep more of SFT's important parameters than TIES",
                contradicted="slack keeps fewer of SFT's important parameters than TIES",
            ),
        ),
        slack_keeps,
    ),
    _slack("slack-accuracy", "Slack raises accuracy.", "accuracy", PAPER),
    _slack("slack-answer-bits", "Slack makes the correct answers more likely.", "answer_bits", PAPER),
    _slack(
        id="slack-norm-accuracy",
        text="Slack raises accuracy when all merged updates have the same norm.",
        kind="accuracy",
        source=OURS,
        at_norm=" and norm of the update",
    ),
    _slack(
        id="slack-norm-answer-bits",
        text="Slack makes the correct answers more likely when all merged updates have the same norm.",
        kind="answer_bits",
        source=OURS,
        at_norm=" and norm",
    ),
)


def answer_all(
    evaluations: Iterable[Evaluation], discarded: Sequence[Discarded], choices: Sequence[Selected], language: str
) -> Claims:
    """Return all answers and all paired comparisons, in the target language."""
    evidence = Evidence(evaluations, language)
    leaders = {budget: leader for budget in evidence.budgets if (leader := leader_at(budget, choices, evidence))}
    data = ClaimData(evidence, discarded, choices, leaders)
    findings = [(claim, answer(data)) for claim, answer in STATED]
    adjusted = iter(holm([finding.estimate.p for _, finding in findings if finding.estimate is not None]))
    answers = []
    for claim, (estimate, text, parts) in findings:
        if estimate is None:
            answers.append(Answer(claim=claim, verdict="no data", text=text))
        else:
            p = next(adjusted)
            answers.append(
                Answer(
                    claim=claim,
                    verdict=verdict(estimate, claim.margin, p),
                    estimate=estimate,
                    p_adjusted=p,
                    text=text,
                    parts=parts,
                )
            )
    return Claims(answers, compare(evidence))
