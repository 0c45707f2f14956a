"""One sentence of what a run found, computed from the verdicts of its claims."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.claims import Answer
from pipeline.report.paired import KINDS, Comparison
from pipeline.report.records import label
from pipeline.report.wording import interval

SAYS = {  # in the order in which the second claim of a sentence is looked for
    "shown": "shows that",
    "level": "finds no difference that matters in whether",
    "not shown": "does not show that",
    "undecided": "cannot tell whether",
}


def sentence(answers: Sequence[Answer], language: str) -> str:
    """The first claim, the first other one that was shown (or else level, or not shown), and how many are of each."""
    asked = [answer for answer in answers if answer.verdict in SAYS]
    if not asked:
        return f"In {language}, nothing that the claims ask about was run yet."
    by_verdict = {verdict: [answer for answer in asked if answer.verdict == verdict] for verdict in SAYS}
    others = [answer for verdict in list(SAYS)[:3] for answer in by_verdict[verdict] if answer is not asked[0]]
    said = _joined([f"{SAYS[answer.verdict]} {_claim(answer)}" for answer in (asked[0], *others[:1])])
    counts = _joined([f"{len(found)} {verdict}" for verdict, found in by_verdict.items() if found])
    return f"In {language}, this run {said}. Of {len(asked)} claims: {counts}."


def of_comparisons(comparisons: Sequence[Comparison]) -> str:
    """What paired differences say where no claims were asked: how many tell something, and the largest that does."""
    if not comparisons:
        return "There is nothing to compare here."
    counts = {verdict: [c for c in comparisons if c.verdict == verdict] for verdict in ("better", "worse", "level")}
    told = [f"{len(found)} {verdict}" for verdict, found in counts.items() if found]
    text = f"Of {len(comparisons)} paired differences, {_joined(told) if told else 'none'} can be told"
    clear = sorted(counts["better"] + counts["worse"], key=lambda c: c.p_adjusted)
    if clear:
        c = clear[0]
        text += f"; the clearest: {label(c.method)} {c.verdict} than {label(c.baseline)} in {KINDS[c.kind]}"
        text += f" ({interval(c.difference)})"
    return text + "."


def _claim(answer: Answer) -> str:
    text = answer.claim.text.rstrip(".")
    if text[:1].isupper() and not text[1:2].isupper():
        text = text[0].lower() + text[1:]
    return f"{text} ({interval(answer.estimate)})" if answer.estimate else text


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
