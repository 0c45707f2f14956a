"""How numbers are written in reports."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf

from pipeline.report.inference import Estimate, Parts

ANSWER_BITS = "bits per byte of the correct answer"  # the metric answer_bits_per_byte
CHAT_ACCURACY = "mean accuracy by chat template"
SHARE_OF_TOP = "as a share of SFT's top 5% of parameters"
UNITS = {  # of differences, by what is measured
    "accuracy": "in accuracy",
    "answer_bits": ANSWER_BITS,
    "bits": "bits per byte of text",
    "error": "in mean error",
    "lost_top_share": SHARE_OF_TOP,
}
# Names of merges that are not "method, setting, note"; other merges are named by merge/method_table.py, checkpoints
# by pipeline/baselines.py. records.label puts these together, and everything that people read takes it from there.
MERGE_NAMES = {
    "average_of_base_and_sft": "average of base and SFT",
    "average_of_ct_then_sft_and_ct": "average of CT-then-SFT and CT",
    "chat_linear": "average of chat model and CT on it",
    "chat_slerp": "slerp of chat model and CT on it",
    "chat_vector": "chat vector",
    "random_signs": "TIES with random signs",
}
NOTES = {"_fixed": "fixed settings", "_stated": "fixed settings", "_at_norm": "same norm"}  # of the ends of names


def interval(difference: Estimate) -> str:
    """`+0.041 (95% CI +0.012 to +0.070)`: a difference with its 95% interval."""
    return f"{signed(difference.value)} (95% CI {signed(difference.low)} to {signed(difference.high)})"


def by_part(parts: Parts) -> str:
    """`By task: genre +0.111 (95% CI ...); next ...`, empty where there are fewer than two."""
    listed = "; ".join(f"{name} {interval(effect)}" for name, effect in parts.effects)
    return f"By {parts.by}: {listed}." if len(parts.effects) > 1 else ""


def signed(value: float) -> str:
    """Three decimals with a sign, and a minus that is as wide as the plus."""
    text = f"{value:+}".replace("inf", "\u221e") if isinf(value) else f"{round(value, 3) + 0.0:+.3f}"
    return text.replace("-", "\u2212")


def confidence(difference: Estimate, unit: str) -> str:
    """`+0.041 in accuracy, 95% CI +0.012 to +0.070`"""
    return f"{signed(difference.value)} {unit}, 95% CI {signed(difference.low)} to {signed(difference.high)}"


def listed(names: Sequence[str], word: str = "and") -> str:
    """`a, b and c`"""
    return f"{', '.join(names[:-1])} {word} {names[-1]}" if names[1:] else "".join(names)


def percent(share: float) -> str:
    """`12.3%`"""
    return f"{100 * share:.1f}%"
