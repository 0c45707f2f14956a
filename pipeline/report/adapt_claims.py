"""The three claims of experiment=adapt, stated before any test score, and their verdicts.

The models are compared on the same test items. There is one seed, so that an interval is for other documents of the
same kind and not for another training. Each claim is that a difference lies above its threshold: 0, or minus the
tolerance (non-inferiority: S. Hahn, Korean J. Pediatrics 55 (2012) 403-407). Its p-value is twice the one-sided, and
Holm's method adjusts the three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.adapt import (
    ADAPTED,
    CHAT,
    CT,
    CT_ON_CHAT,
    TITLES,
    AdaptChoice,
    AdaptMeasure,
    Candidate,
    TestScores,
)
from pipeline.report.claims import Answer, Claim
from pipeline.report.formatting import confidence, label, signed
from pipeline.report.inference import LEVEL, Estimate, Verdict, holm, verdict
from pipeline.report.paired import MARGINS

GAINS, KEEPS, BEATS_CT = "gains", "keeps", "gains-over-ct-on-chat"
SOURCE = "stated in pipeline/report/adapt_claims.py"
CHAT_MODEL_CHOSEN = "The chat model itself was chosen on dev, so there is no adapted model to test."


@dataclass(frozen=True)
class Compared:
    """A claim, its difference on test, and the threshold that the difference must exceed."""

    claim: Claim
    difference: Estimate | None
    threshold: float = 0.0

    @property
    def p(self) -> float:
        """The p-value of a true difference at or below the threshold."""
        return 1.0 if self.difference is None else self.difference.p_above(self.threshold)

    def verdict(self, p_adjusted: float) -> Verdict:
        """Return the verdict, given the p-value adjusted for all claims."""
        if self.difference is None:
            return "no data"
        if self.threshold == 0:
            return verdict(self.difference, self.claim.margin, p_adjusted, least_seeds=1)
        if p_adjusted < LEVEL:
            return "supported"
        return "contradicted" if self.difference.high < self.threshold else "inconclusive"


def answers(
    scores: TestScores, gain: AdaptMeasure, keep: AdaptMeasure, tolerance: float, adapted: bool = True
) -> list[Answer]:
    """Return the answers to the three claims, in their order.

    adapted: whether there is an adapted model; if the chat model was chosen, no claim has data. tolerance: what the
    measure that is kept may lose, in its unit.
    """
    scored = {evaluation.method for evaluation in scores.evaluations}
    rival = CT_ON_CHAT if CT_ON_CHAT in scored else CT  # with one model as the pair, they are the same stage
    stated = (
        (_claim(GAINS, f"The adapted model is better than the chat model in {gain.title}.", gain), gain, CHAT, 0.0),
        (
            _claim(KEEPS, f"The adapted model loses less than {tolerance:g} in {keep.title}.", keep, tolerance),
            keep,
            CHAT,
            -tolerance,
        ),
        (
            _claim(BEATS_CT, f"The adapted model is better than {TITLES[rival]} in {gain.title}.", gain),
            gain,
            rival,
            0.0,
        ),
    )
    compared = [
        Compared(claim, scores.gain(measure, ADAPTED, other) if adapted else None, threshold)
        for claim, measure, other, threshold in stated
    ]
    adjusted = iter(holm([one.p for one in compared if one.difference is not None]))
    answered = []
    for one in compared:
        if one.difference is None:
            missing = "It takes test scores of both models." if adapted else CHAT_MODEL_CHOSEN
            answered.append(Answer(claim=one.claim, verdict="no data", text=missing, more=_more(one)))
            continue
        p = next(adjusted)
        words = f"{confidence(one.difference, one.claim.unit)}, p {p:.2g} after Holm."
        answered.append(
            Answer(
                claim=one.claim,
                verdict=one.verdict(p),
                estimate=one.difference,
                p_adjusted=p,
                text=words,
                more=_more(one),
            )
        )
    return answered


def _claim(name: str, text: str, measure: AdaptMeasure, margin: float | None = None) -> Claim:
    better = "saved" if measure.lower_is_better else "gained"
    statistic = f"{measure.title} {better} on the same test items, minus the threshold"
    return Claim(
        id=name,
        text=text,
        source=SOURCE,
        statistic=statistic,
        margin=MARGINS[measure.kind] if margin is None else margin,
        unit=measure.unit,
    )


def _more(one: Compared) -> Mapping[str, Any]:
    return {"threshold": one.threshold, "p_of_claim": None if one.difference is None else one.p}


UNKNOWN = "The adapted model is chosen, but it is not scored on test yet."


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """Write the settings of a try: `lambda 0.75`, `weight of the chat model 0.5`."""

    def name(key: str) -> str:
        model, _, rest = key.removeprefix("models.").partition(".")
        return f"{rest} of {'the chat model' if model == CHAT else label(model)}" if rest else key

    def shown(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name(key)} {shown(value)}" for key, value in settings.items())


def name_of(candidate: Candidate | AdaptChoice) -> str:
    """Return the display name of a candidate: `TIES + slack 1, lambda 0.75`."""
    words = settings_in_words(candidate.settings)
    return f"{label(candidate.method)}, {words}" if words else label(candidate.method)


def sentences(
    answers: Sequence[Answer], choice: AdaptChoice, tries: Sequence[Candidate], gain: AdaptMeasure, keep: AdaptMeasure
) -> str:
    """Return what was gained, what was lost and whether each is shown; or why no model was written."""
    if choice.is_chat_model:
        return nothing_better(tries, choice, gain, keep)
    by_claim = {answer.claim.id: answer for answer in answers}
    gained, kept = by_claim[GAINS], by_claim[KEEPS]
    if gained.estimate is None or kept.estimate is None:
        return UNKNOWN
    return f"{_gained(gained, gained.estimate, gain)} {_kept(kept, kept.estimate, keep, choice.tolerance)}"


def _numbers(estimate: Estimate, measure: AdaptMeasure) -> str:
    return f"({signed(estimate.value)}{_saved(measure)}, 95% CI {signed(estimate.low)} to {signed(estimate.high)})"


def _bracketed(estimate: Estimate) -> str:
    return f"{signed(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def _saved(measure: AdaptMeasure) -> str:
    return " saved" if measure.lower_is_better else ""


def _gained(answer: Answer, estimate: Estimate, measure: AdaptMeasure) -> str:
    subject, numbers = "The adapted model", _numbers(estimate, measure)
    what = f"in {measure.title}"
    texts = {
        "supported": f"{subject} is better than the chat model {what} {numbers}: this is shown.",
        "contradicted": f"{subject} is worse than the chat model {what} {numbers}: this is shown.",
        "equivalent": f"{subject} and the chat model are equivalent {what} {numbers}.",
        "ruled out": f"{subject} is not better than the chat model {what} {numbers}: a gain that matters is ruled out.",
    }
    default = f"It is inconclusive whether the adapted model is better than the chat model {what} {numbers}."
    return texts.get(answer.verdict, default)


def _kept(answer: Answer, estimate: Estimate, measure: AdaptMeasure, tolerance: float) -> str:
    numbers, what = _numbers(estimate, measure), measure.title
    texts = {
        "supported": f"It keeps the chat model's {what} {numbers}: a loss of {tolerance:g} is ruled out.",
        "contradicted": f"It loses more than {tolerance:g} of the chat model's {what} {numbers}: this is shown.",
    }
    default = f"It is inconclusive whether it keeps the chat model's {what} to within {tolerance:g} {numbers}."
    return texts.get(answer.verdict, default)


def nothing_better(tries: Sequence[Candidate], choice: AdaptChoice, gain: AdaptMeasure, keep: AdaptMeasure) -> str:
    """Return why the chat model stays: the tries that lost too much, and those that gained nothing."""
    merges = [one for one in tries if one.candidate != choice.candidate]
    lost = sum(not one.kept for one in merges)
    no_gain = len(merges) - lost
    reasons = []
    if lost:
        reasons.append(f"{lost} lost more than {choice.tolerance:g} in {keep.title}")
    if no_gain:
        reasons.append(f"{no_gain} did not raise {gain.title}")
    return f"None of {len(merges)} merges beats the chat model on dev: {', '.join(reasons)}. No model was written."


def terminal_line(answers: Sequence[Answer], choice: AdaptChoice, gain: AdaptMeasure, keep: AdaptMeasure) -> str:
    """Return the choice and its test scores for a terminal: `ties_sv_1, lambda 0.75; on test Chichewa accuracy +0.061
    [+0.032, +0.090], English accuracy −0.008 [−0.019, +0.003] (kept)`.
    """
    words = settings_in_words(choice.settings)
    by_id = {answer.claim.id: answer for answer in answers if answer.estimate}
    parts = []
    if GAINS in by_id and (estimate := by_id[GAINS].estimate):
        parts.append(f"{gain.title} {_bracketed(estimate)}{_saved(gain)}")
    if KEEPS in by_id and (estimate := by_id[KEEPS].estimate):
        verdicts = {"supported": "kept", "contradicted": "not kept"}
        parts.append(
            f"{keep.title} {_bracketed(estimate)}{_saved(keep)} ({verdicts.get(by_id[KEEPS].verdict, 'inconclusive')})"
        )
    scores = f"; on test {', '.join(parts)}" if parts else ""
    return f"{choice.method}{f', {words}' if words else ''}{scores}"
