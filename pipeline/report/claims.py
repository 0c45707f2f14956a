"""Claims with their answers: the types that built-in claims, hypotheses and adaptations share, and claims.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from pipeline.report.inference import OLD_VERDICTS, Estimate, Parts, Verdict
from pipeline.report.paired import Comparison


@dataclass(frozen=True, kw_only=True)
class Clauses:
    """A claim as a clause of a sentence, under each verdict.

    where: `smallest` or `largest` budget, `mean` over budgets, or empty. An inconclusive claim is written as supported,
    behind "it is inconclusive whether".
    """

    where: str
    supported: str
    equivalent: str
    ruled_out: str
    contradicted: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim as it was stated: its text, its source, and the statistic that must be above 0.

    margin: a statistic nearer to 0 than this would not matter. unit: of the effect, the margin and the MDE. clauses: of
    built-in claims; the sentences of others have their text.
    """

    id: str
    text: str
    source: str
    statistic: str
    margin: float
    unit: str
    clauses: Clauses | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The verdict on a claim.

    estimate: of its statistic. p_adjusted: by Holm, for all claims with data. more: further keys of claims.json.
    parts: the same statistic in each task or at each budget.
    """

    claim: Claim
    verdict: Verdict
    text: str
    estimate: Estimate | None = None
    p_adjusted: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts = field(default_factory=Parts)


@dataclass(frozen=True)
class Claims:
    answers: list[Answer]
    comparisons: list[Comparison]


def as_json(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return the rows of claims.json. A claim without data, and an infinite end of an interval, have nulls."""
    rows = []
    for answer in answers:
        claim, estimate = answer.claim, answer.estimate
        names = ("value", "low", "high", "mde", "p")
        numbers = {name: getattr(estimate, name, None) for name in names}
        effect, low, high, mde, p = (x if x is not None and isfinite(x) else None for x in numbers.values())
        rows.append(
            {
                "id": claim.id,
                "claim": claim.text,
                "source": claim.source,
                "statistic": claim.statistic,
                "threshold": 0.0,
                "margin": claim.margin,
                "effect": effect,
                "low": low,
                "high": high,
                "n": estimate.n if estimate else 0,
                "seeds": estimate.seeds if estimate else 0,
                "documents": estimate.documents if estimate else 0,
                "mde": mde,
                "p": p,
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
