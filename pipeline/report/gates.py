"""What a base must show before methods are compared on it: the gates of docs/results/notebook.md.

The gates were stated beforehand. Pure.

They apply to the scored split: `experiment=gates` scores dev, so that no test item has a say in the choice
of a base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.report.records import ENGLISH, Row, mean

LEARNS = 0.08  # accuracy of `next` that CT at the largest budget must add to the base
ROOM = 0.10  # accuracy that SFT in the language, after the largest CT, must add to English SFT, in each family
SKILL = 0.60  # accuracy of English SFT on English items, mean of the families kept


@dataclass(frozen=True)
class Gate:
    """One gate's answer: it passes where value >= threshold.

    kind: learns, room (one a family: a family that fails leaves the suite) or skill.
    """

    kind: str
    family: str
    value: float
    threshold: float

    @property
    def passed(self) -> bool:
        return self.value >= self.threshold


def gates(rows: Sequence[Row], target: str) -> list[Gate]:
    """Return the answers, means over seeds; empty where target_sft was not scored."""
    scores: dict[tuple[str, str, str, int], list[float]] = {}
    for row in rows:
        if row.primary and row.metric.startswith("acc") and row.family != "mean":
            scores.setdefault((row.language, row.family, row.method, row.ct_tokens), []).append(row.value)
    value = {key: mean(seeds) for key, seeds in scores.items()}
    budget = max((tokens for _, _, method, tokens in value if method == "target_sft"), default=None)
    if budget is None:
        return []
    families = sorted({family for language, family, method, _ in value if (language, method) == (target, "target_sft")})
    room = [
        Gate("room", family, value[target, family, "target_sft", budget] - value[target, family, "sft", 0], ROOM)
        for family in families
        if (target, family, "sft", 0) in value
    ]
    kept = [gate.family for gate in room if gate.passed]
    english = [value[ENGLISH, family, "sft", 0] for family in kept if (ENGLISH, family, "sft", 0) in value]
    after, before = value.get((target, "next", "ct", budget)), value.get((target, "next", "base", 0))
    learns = [] if after is None or before is None else [Gate("learns", "next", after - before, LEARNS)]
    skill = [Gate("skill", " ".join(kept), mean(english), SKILL)] if english else []
    return [*learns, *room, *skill]


def as_json(answers: Sequence[Gate]) -> list[dict[str, Any]]:
    """Return the rows of gates.json."""
    return [asdict(gate) | {"passed": gate.passed} for gate in answers]


def in_words(answers: Sequence[Gate]) -> list[str]:
    """Return one line per gate, for a terminal."""
    return [
        f"  gate {gate.kind} ({gate.family}): {gate.value:.3f}, wanted {gate.threshold:.2f}: "
        f"{'passed' if gate.passed else 'FAILED'}"
        for gate in answers
    ]
