"""What an adaptation gained and lost, in one or two sentences: for the page, and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.adapt_claims import GAINS, KEEPS
from pipeline.report.adapt_measures import Measure
from pipeline.report.adapt_records import CHAT, Candidate, Choice
from pipeline.report.claims import Answer
from pipeline.report.inference import Estimate
from pipeline.report.records import label
from pipeline.report.wording import signed

UNKNOWN = "The adapted model is chosen, but it is not scored on test yet."


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """Write the settings of a try: `lambda 0.75`, `weight of the chat model 0.5`."""

    def name(key: str) -> str:
        model, _, rest = key.removeprefix("models.").partition(".")
        return f"{rest} of {'the chat model' if model == CHAT else label(model)}" if rest else key

    def shown(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name(key)} {shown(value)}" for key, value in settings.items())


def name_of(candidate: Candidate | Choice) -> str:
    """Return the display name of a candidate: `TIES + slack 1, lambda 0.75`."""
    words = settings_in_words(candidate.settings)
    return f"{label(candidate.method)}, {words}" if words else label(candidate.method)


def sentences(
    answers: Sequence[Answer], choice: Choice, tries: Sequence[Candidate], gain: Measure, keep: Measure
) -> str:
    """Return what was gained, what was lost and whether each is shown; or why no model was written."""
    if choice.is_chat_model:
        return nothing_better(tries, choice, gain, keep)
    by_claim = {answer.claim.id: answer for answer in answers}
    gained, kept = by_claim[GAINS], by_claim[KEEPS]
    if gained.estimate is None or kept.estimate is None:
        return UNKNOWN
    return f"{_gained(gained, gained.estimate, gain)} {_kept(kept, kept.estimate, keep, choice.tolerance)}"


def _numbers(estimate: Estimate, measure: Measure) -> str:
    return f"({signed(estimate.value)}{_saved(measure)}, 95% CI {signed(estimate.low)} to {signed(estimate.high)})"


def _bracketed(estimate: Estimate) -> str:
    return f"{signed(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def _saved(measure: Measure) -> str:
    return " saved" if measure.lower_is_better else ""


def _gained(answer: Answer, estimate: Estimate, measure: Measure) -> str:
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


def _kept(answer: Answer, estimate: Estimate, measure: Measure, tolerance: float) -> str:
    numbers, what = _numbers(estimate, measure), measure.title
    texts = {
        "supported": f"It keeps the chat model's {what} {numbers}: a loss of {tolerance:g} is ruled out.",
        "contradicted": f"It loses more than {tolerance:g} of the chat model's {what} {numbers}: this is shown.",
    }
    default = f"It is inconclusive whether it keeps the chat model's {what} to within {tolerance:g} {numbers}."
    return texts.get(answer.verdict, default)


def nothing_better(tries: Sequence[Candidate], choice: Choice, gain: Measure, keep: Measure) -> str:
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


def user_errors(answers: Sequence[Answer], choice: Choice, gain: Measure, keep: Measure) -> str:
    """Return the choice and its test scores for a terminal: `ties_sv_1, lambda 0.75; on test Chichewa accuracy +0.061
    [+0.032, +0.090], English accuracy −0.008 [−0.019, +0.003] (kept)`.
    """
    words = settings_in_words(choice.settings)
    found = {answer.claim.id: answer for answer in answers if answer.estimate}
    parts = []
    if GAINS in found and (estimate := found[GAINS].estimate):
        parts.append(f"{gain.title} {_bracketed(estimate)}{_saved(gain)}")
    if KEEPS in found and (estimate := found[KEEPS].estimate):
        verdicts = {"supported": "kept", "contradicted": "not kept"}
        parts.append(
            f"{keep.title} {_bracketed(estimate)}{_saved(keep)} ({verdicts.get(found[KEEPS].verdict, 'inconclusive')})"
        )
    scores = f"; on test {', '.join(parts)}" if parts else ""
    return f"{choice.method}{f', {words}' if words else ''}{scores}"
