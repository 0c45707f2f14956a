"""The built-in claims, which were stated before looking at test scores, and their verdicts.

A new claim is a row of STATED and a function of pipeline/report/findings.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from pipeline.report import findings
from pipeline.report.choices import Chosen
from pipeline.report.discards import TOP, Discarded
from pipeline.report.findings import Data, Finding
from pipeline.report.inference import OLD_VERDICTS, Estimate, Parts, Verdict, holm, verdict
from pipeline.report.paired import MARGINS, Comparison, Evidence, compare
from pipeline.report.records import Evaluation
from pipeline.report.wording import ANSWER_BITS

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
    evaluations: Iterable[Evaluation], discarded: Sequence[Discarded], choices: Sequence[Chosen], language: str
) -> Claims:
    """All answers and all paired comparisons, in the target language."""
    evidence = Evidence(evaluations, language)
    leaders = {
        budget: leader for budget in evidence.budgets if (leader := findings.leader_at(budget, choices, evidence))
    }
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
        findings.beats("ct_then_sft", "accuracy"),
    ),
    (
        Claim(
            "scarce-answer-bits",
            "Merges make the correct answers more likely than CT-then-SFT does at the smallest CT budget.",
            PAPER,
            f"{ANSWER_BITS} saved {SCARCE} CT-then-SFT",
            MARGINS["answer_bits"],
        ),
        findings.beats("ct_then_sft", "answer_bits"),
    ),
    (
        Claim(
            "language-kept",
            "Merges model the language better than CT-then-SFT.",
            "ours",
            "bits per byte of text saved, mean over budgets, of the merge that was best on dev against CT-then-SFT",
            MARGINS["bits"],
        ),
        findings.keeps_language("ct_then_sft"),
    ),
    (
        Claim(
            "averaged-accuracy",
            "Merges are more accurate than the average of CT-then-SFT and CT at the smallest CT budget.",
            "ours",
            f"gain in mean accuracy {SCARCE} {AVERAGE}",
            MARGINS["accuracy"],
        ),
        findings.beats("average_of_ct_then_sft_and_ct", "accuracy"),
    ),
    (
        Claim(
            "averaged-language-kept",
            "Merges model the language better than the average of CT-then-SFT and CT.",
            "ours",
            f"bits per byte of text saved, mean over budgets, of the merge that was best on dev against {AVERAGE}",
            MARGINS["bits"],
        ),
        findings.keeps_language("average_of_ct_then_sft_and_ct"),
    ),
    (
        Claim(
            "merging-uses-ct",
            "Merges gain from CT: they are more accurate than the average of base and SFT, which needs no CT.",
            "ours",
            "gain in mean accuracy at the largest CT budget, of the merge that was best on dev against that average",
            MARGINS["accuracy"],
        ),
        findings.beats("average_of_base_and_sft", "accuracy", max),
    ),
    (
        Claim(
            "advantage-shrinks",
            "The advantage of merges over CT-then-SFT shrinks as the CT budget grows.",
            PAPER,
            "advantage in mean accuracy at the smallest budget minus that at the largest",
            MARGINS["accuracy"],
        ),
        findings.advantage_shrinks,
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
        findings.conflicts_grow,
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
        findings.slack_keeps,
    ),
    (
        Claim(
            "slack-accuracy",
            "Slack raises accuracy.",
            PAPER,
            f"gain in mean accuracy with slack, TIES else of the same settings, {READINGS}",
            MARGINS["accuracy"],
        ),
        findings.slack_helps("accuracy"),
    ),
    (
        Claim(
            "slack-answer-bits",
            "Slack makes the correct answers more likely.",
            PAPER,
            f"{ANSWER_BITS} saved with slack, TIES else of the same settings, {READINGS}",
            MARGINS["answer_bits"],
        ),
        findings.slack_helps("answer_bits"),
    ),
    (
        Claim(
            "slack-norm-accuracy",
            "Slack raises accuracy when all merged updates have the same norm.",
            OURS,
            f"gain in mean accuracy with slack, TIES else of the same settings and norm of the update, {READINGS}",
            MARGINS["accuracy"],
        ),
        findings.slack_helps("accuracy", at_norm=True),
    ),
    (
        Claim(
            "slack-norm-answer-bits",
            "Slack makes the correct answers more likely when all merged updates have the same norm.",
            OURS,
            f"{ANSWER_BITS} saved with slack, TIES else of the same settings and norm, {READINGS}",
            MARGINS["answer_bits"],
        ),
        findings.slack_helps("answer_bits", at_norm=True),
    ),
)
