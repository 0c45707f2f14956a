"""How numbers are written in reports."""

from __future__ import annotations

from math import isinf

from pipeline.report.inference import Estimate


def interval(difference: Estimate) -> str:
    """`+0.041 [+0.012, +0.070]`: a difference with its 95 % interval."""
    return f"{signed(difference.value)} [{signed(difference.low)}, {signed(difference.high)}]"


def signed(value: float) -> str:
    """Three decimals with a sign, and a minus that is as wide as the plus."""
    text = f"{value:+}".replace("inf", "\u221e") if isinf(value) else f"{round(value, 3) + 0.0:+.3f}"
    return text.replace("-", "\u2212")


def percent(share: float) -> str:
    """`12.3 %`"""
    return f"{100 * share:.1f} %"
