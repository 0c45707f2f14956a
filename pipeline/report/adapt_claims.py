"""The three claims of experiment=adapt, stated before any test score, and their verdicts.

The models are compared on the same test items. There is one seed, so that an interval is for other documents of the
same kind and not for another training. Each claim is that a difference lies above its threshold: 0, or minus the
tolerance (non-inferiority: S. Hahn, Korean J. Pediatrics 55 (2012) 403-407). Its p-value is twice the one-sided, and
Holm's method adjusts the three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.adapt_measures import Measure, TestScores
from pipeline.report.adapt_records import ADAPTED, CHAT, CT, CT_ON_CHAT, TITLES
from pipeline.report.claims import Answer, Claim
from pipeline.report.inference import LEVEL, Estimate, Verdict, holm, verdict
from pipeline.report.paired import MARGINS
from pipeline.report.wording import confidence

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


def answers(scores: TestScores, gain: Measure, keep: Measure, tolerance: float, adapted: bool = True) -> list[Answer]:
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
    found = []
    for one in compared:
        if one.difference is None:
            missing = "It takes test scores of both models." if adapted else CHAT_MODEL_CHOSEN
            found.append(Answer(one.claim, "no data", None, None, missing, _more(one)))
            continue
        p = next(adjusted)
        words = f"{confidence(one.difference, one.claim.unit)}, p {p:.2g} after Holm."
        found.append(Answer(one.claim, one.verdict(p), one.difference, p, words, _more(one)))
    return found


def _claim(name: str, text: str, measure: Measure, margin: float | None = None) -> Claim:
    better = "saved" if measure.lower_is_better else "gained"
    statistic = f"{measure.title} {better} on the same test items, minus the threshold"
    return Claim(name, text, SOURCE, statistic, MARGINS[measure.kind] if margin is None else margin, measure.unit)


def _more(one: Compared) -> Mapping[str, Any]:
    return {"threshold": one.threshold, "p_of_claim": None if one.difference is None else one.p}
