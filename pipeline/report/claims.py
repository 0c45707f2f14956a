"""What a run shows, computed from its samples and audits. A difference is shown where its 95 % interval excludes 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.choices import Chosen
from pipeline.report.discards import Discarded
from pipeline.report.paired import Comparison, Difference, Evidence, compare, sign
from pipeline.report.records import Evaluation, label, mean
from pipeline.report.results import budget_name

Verdict = Literal["shown", "not shown", "the opposite is shown", "no data"]
TOP = "5%"


@dataclass(frozen=True)
class Answer:
    """A claim of the paper as a question, what this run's data say to it, and the numbers."""

    question: str
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Claims:
    answers: list[Answer]
    comparisons: list[Comparison]


def claims(
    evaluations: Iterable[Evaluation], discarded: Sequence[Discarded], choices: Sequence[Chosen], language: str
) -> Claims:
    """All answers and all paired comparisons, in the target language."""
    evidence = Evidence(evaluations, language)
    comparisons = compare(evidence)
    leaders = {budget: leader for budget in evidence.budgets if (leader := leader_at(budget, choices, evidence))}
    answers = [
        beats_ct_then_sft(evidence, comparisons, leaders),
        advantage_shrinks(evidence, comparisons, leaders),
        conflicts_grow(discarded),
        slack_keeps(discarded),
        slack_helps(evidence, discarded),
    ]
    return Claims(answers, comparisons)


def leader_at(budget: int, choices: Sequence[Chosen], evidence: Evidence) -> str | None:
    """The merge with the best score on dev at a budget (mean over seeds): chosen without a look at the test items."""
    scores: dict[str, list[float]] = {}
    for choice in choices:
        if choice.ct_tokens == budget and evidence.has(choice.method, budget):
            scores.setdefault(choice.method, []).append(
                -choice.score if choice.metric == "bits_per_byte" else choice.score
            )
    return max(scores, key=lambda method: mean(scores[method])) if scores else None


def beats_ct_then_sft(evidence: Evidence, comparisons: Sequence[Comparison], leaders: dict[int, str]) -> Answer:
    question = "Do merges beat CT-then-SFT where text is scarcest?"
    budget = min(evidence.budgets, default=0)
    here = {
        (comparison.method, comparison.kind): comparison
        for comparison in comparisons
        if comparison.ct_tokens == budget and comparison.baseline == "ct_then_sft"
    }
    leader = leaders.get(budget, "")
    if (leader, "accuracy") not in here:
        return Answer(question, "no data", "It takes CT-then-SFT and a merge with a score on dev at the same budget.")
    difference = here[leader, "accuracy"].difference
    merged, reference = (evidence.value("accuracy", method, budget) for method in (leader, "ct_then_sft"))
    text = (
        f"At {budget_name(budget)} tokens the merge that was best on dev, {label(leader)}, has a mean accuracy of "
        f"{merged:.3f}; CT-then-SFT has {reference:.3f}. Difference {interval(difference)}."
    )
    if (leader, "bits") in here:
        text += f" In bits per byte (lower is better): {interval(here[leader, 'bits'].difference)}."
    ahead = sum(kind == "accuracy" and comparison.verdict == "better" for (_, kind), comparison in here.items())
    text += f" Of the {len({method for method, _ in here})} merges, {ahead} {'is' if ahead == 1 else 'are'} shown "
    text += "to be ahead of CT-then-SFT."
    return Answer(question, verdict(difference), text)


def advantage_shrinks(evidence: Evidence, comparisons: Sequence[Comparison], leaders: dict[int, str]) -> Answer:
    question = "Does the advantage over CT-then-SFT shrink as text grows?"
    steps = {
        comparison.ct_tokens: comparison.difference
        for comparison in comparisons
        if (comparison.baseline, comparison.kind) == ("ct_then_sft", "accuracy")
        and leaders.get(comparison.ct_tokens) == comparison.method
    }
    if len(steps) < 2:
        return Answer(question, "no data", "It takes two budgets with CT-then-SFT and a merge chosen on dev.")
    first, last = min(steps), max(steps)
    weights = ((first, 1.0), (last, -1.0))
    shrinkage = evidence.contrast(
        "accuracy",
        [
            ((method, budget), side * way)
            for budget, way in weights
            for method, side in ((leaders[budget], 1.0), ("ct_then_sft", -1.0))
        ],
    )
    if shrinkage is None:
        return Answer(question, "no data", "The smallest and the largest budget have no seed in common.")
    listed = "; ".join(
        f"{budget_name(budget)} ({label(leaders[budget])}) {interval(steps[budget])}" for budget in sorted(steps)
    )
    text = f"Mean accuracy of the merge that was best on dev, minus that of CT-then-SFT: {listed}. "
    text += f"From {budget_name(first)} to {budget_name(last)} the advantage shrinks by {interval(shrinkage)}."
    return Answer(question, verdict(shrinkage), text)


def conflicts_grow(discarded: Sequence[Discarded]) -> Answer:
    question = "Does TIES discard ever more of SFT's important parameters as the CT budget grows?"
    lost = lost_by_method([merge for merge in discarded if merge.plain_ties])
    series = {method: shares for method, shares in lost.items() if len(shares) > 1}
    if not series:
        return Answer(question, "no data", "It takes TIES without slack at two budgets.")
    steps = [
        later - earlier
        for shares in series.values()
        for earlier, later in zip(_by_budget(shares), _by_budget(shares)[1:], strict=False)
    ]
    text = f"Share of SFT's largest {TOP[:-1]} % of parameters whose sign lost the election: "
    text += "; ".join(f"{label(method)}: {_listed(shares)}" for method, shares in series.items())
    text += ". These are counts of all parameters, not estimates; shown means that the share rises from every budget "
    text += "to the next."
    return Answer(question, _all_one_way(steps), text)


def slack_keeps(discarded: Sequence[Discarded]) -> Answer:
    question = "Does slack keep SFT's important parameters?"
    plain = lost_by_method([merge for merge in discarded if merge.plain_ties])
    slack = lost_by_method([merge for merge in discarded if merge.slack_for_sft])
    gains = [
        mean([shares[budget] for shares in plain.values() if budget in shares]) - kept[budget]
        for kept in slack.values()
        for budget in kept
        if any(budget in shares for shares in plain.values())
    ]
    if not gains:
        return Answer(question, "no data", "It takes TIES with slack and TIES without it at the same budget.")
    text = f"Share of SFT's largest {TOP[:-1]} % of parameters lost in sign conflicts: "
    text += "; ".join(f"{label(method)}: {_listed(shares)}" for method, shares in (plain | slack).items())
    text += ". Shown means that every slack loses less than TIES at every budget."
    return Answer(question, _all_one_way(gains), text)


def slack_helps(evidence: Evidence, discarded: Sequence[Discarded]) -> Answer:
    question = "Does slack raise the scores?"
    plain = {merge.method for merge in discarded if merge.plain_ties}
    slack = {merge.method for merge in discarded if merge.slack_for_sft}
    budgets = [
        budget
        for budget in evidence.budgets
        if any(evidence.has(method, budget) for method in plain)
        and any(evidence.has(method, budget) for method in slack)
    ]
    sides = [
        [
            (method, budget)
            for budget in budgets
            for method in evidence.merges
            if method in side and evidence.has(method, budget)
        ]
        for side in (slack, plain)
    ]
    accuracy = evidence.difference("accuracy", *sides) if budgets else None
    if accuracy is None:
        return Answer(question, "no data", "It takes TIES with slack and TIES without it at the same budget.")
    names = ", ".join(label(method) for method in evidence.merges if method in slack)
    text = f"Mean accuracy with slack ({names}) minus without, over all budgets: {interval(accuracy)}."
    each = [
        f"{budget_name(budget)} {interval(difference)}"
        for budget in budgets
        if len(budgets) > 1
        and (
            difference := evidence.difference(
                "accuracy", *([key for key in side if key[1] == budget] for side in sides)
            )
        )
        is not None
    ]
    text += f" By budget: {'; '.join(each)}." if each else ""
    if (bits := evidence.difference("bits", *sides)) is not None:
        text += f" In bits per byte (lower is better): {interval(bits)}."
    return Answer(question, verdict(accuracy), text)


def lost_by_method(discarded: Iterable[Discarded]) -> dict[str, dict[int, float]]:
    """By method and budget: the share of SFT's most important parameters that was lost in sign conflicts."""
    by_method: dict[str, dict[int, float]] = {}
    for merge in discarded:
        by_method.setdefault(merge.method, {})[merge.ct_tokens] = merge.of_top[TOP].lost
    return by_method


def verdict(difference: Difference) -> Verdict:
    """Of the claim that a difference is above 0."""
    return {1: "shown", 0: "not shown", -1: "the opposite is shown"}[sign(difference)]  # type: ignore[return-value]


def interval(difference: Difference) -> str:
    """`+0.041 [+0.012, +0.070]`: a difference with its 95 % interval."""
    return f"{signed(difference.value)} [{signed(difference.low)}, {signed(difference.high)}]"


def signed(value: float) -> str:
    """Three decimals with a sign, and a minus that is as wide as the plus."""
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "\u2212")


def percent(share: float) -> str:
    """`12.3 %`"""
    return f"{100 * share:.1f} %"


def _all_one_way(steps: Sequence[float]) -> Verdict:
    if all(step > 0 for step in steps):
        return "shown"
    return "the opposite is shown" if all(step < 0 for step in steps) else "not shown"


def _by_budget(shares: dict[int, float]) -> list[float]:
    return [shares[budget] for budget in sorted(shares)]


def _listed(shares: dict[int, float]) -> str:
    return ", ".join(f"{percent(shares[budget])} at {budget_name(budget)}" for budget in sorted(shares))
