"""One sentence of what a run found, computed from the verdicts of its claims."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.claims import Answer
from pipeline.report.paired import KINDS, Comparison
from pipeline.report.records import label
from pipeline.report.wording import interval

MOST = 2  # claims that a sentence names of one kind


def sentence(answers: Sequence[Answer], language: str) -> str:
    """What was shown, what is level, what was not found, and how many claims stay open."""
    by_verdict: dict[str, list[Answer]] = {}
    for answer in answers:
        by_verdict.setdefault(answer.verdict, []).append(answer)
    asked = len(answers) - len(by_verdict.get("no data", ()))
    if not asked:
        return f"In {language}, nothing that the claims ask about was run yet."
    parts = []
    if shown := by_verdict.get("shown"):
        parts.append(f"this run shows that {_listed(shown, effects=True)}")
    if level := by_verdict.get("level"):
        parts.append(f"finds no difference that matters in whether {_listed(level)}")
    if refuted := by_verdict.get("not shown"):
        parts.append(f"rules out that {_listed(refuted)}")
    if not parts:
        parts.append(f"this run cannot tell whether {_listed(by_verdict['undecided'], most=MOST)}")
    elif not shown:
        parts[0] = f"this run {parts[0]}"
    text = f"In {language}, {_joined(parts)}"
    if undecided := len(by_verdict.get("undecided", ())):
        stay = "stays" if undecided == 1 else "stay"
        text += f"; {undecided} of {asked} claims {stay} undecided"
    return text + "."


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


def _listed(answers: Sequence[Answer], effects: bool = False, most: int = MOST) -> str:
    named = []
    for answer in answers[:most]:
        text = answer.claim.text.rstrip(".")
        if text[:1].isupper() and not text[1:2].isupper():
            text = text[0].lower() + text[1:]
        named.append(f"{text} ({interval(answer.estimate)})" if effects and answer.estimate else text)
    if len(answers) > most:
        named.append(f"{len(answers) - most} more")
    return _joined(named)


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
