"""How reports write methods, budgets and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isinf
from typing import Any

from common.units import format_tokens
from merge.methods import METHODS
from pipeline.baselines import BASELINES
from pipeline.old_names import current_method
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
# Names of merges that are not "method, setting, note". merge/methods.py names other merges, pipeline/baselines.py
# checkpoints that are trained.
MERGE_NAMES = {
    "average_of_base_and_sft": "average of base and SFT",
    "average_of_ct_then_sft_and_ct": "average of CT-then-SFT and CT",
    "chat_linear": "average of chat model and CT on it",
    "chat_slerp": "slerp of chat model and CT on it",
    "chat_vector": "chat vector",
    "random_signs": "TIES with random signs",
}
NOTES = {"_fixed": "fixed settings", "_stated": "fixed settings", "_at_norm": "same norm"}  # of the ends of names
ACRONYMS = {"ct": "CT", "sft": "SFT", "ties": "TIES", "dare": "DARE"}  # in names that no table has


def label(method: str) -> str:
    """Return the display name of a method: `ties_sv_1` is `TIES + slack 1`, `linear` is `weighted average`.

    If a report is made from several: `tiny/ties` is `TIES (tiny)`.
    """
    if "/" in method:
        title, _, method = method.rpartition("/")
        return f"{label(method)} ({title})"
    method = current_method(method)
    if method in BASELINES:
        return BASELINES[method].title
    if method in MERGE_NAMES:
        return MERGE_NAMES[method]
    kept, notes = method, []
    for end, note in NOTES.items():
        if kept.endswith(end):
            kept, notes = kept.removesuffix(end), [note]
    recipe = max((name for name in METHODS if kept == name or kept.startswith(f"{name}_")), key=len, default=None)
    if recipe is None:
        name = " ".join(ACRONYMS.get(word, word) for word in kept.split("_"))
    else:
        title, rest = METHODS[recipe].title, kept.removeprefix(recipe).strip("_").replace("_", " ")
        name = title if title[:2].isupper() or title[1:] != title[1:].lower() else title.lower()
        if _is_number(rest):
            name = f"{name} {rest}"
        elif rest:
            notes = [rest, *notes]
    return f"{name} ({', '.join(notes)})" if notes else name


def labels(methods: Sequence[str]) -> dict[str, str]:
    """Return the display names of the methods of one report.

    A method next to its own variant with fixed settings (`ties` and `ties_fixed`) is the tuned one.
    """
    return {
        method: f"{label(method)} (tuned)" if {f"{method}_fixed", f"{method}_stated"} & set(methods) else label(method)
        for method in methods
    }


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def budget_name(ct_tokens: int) -> str:
    """Return a budget as the head of a column."""
    return format_tokens(ct_tokens) if ct_tokens else "no CT"


def interval(difference: Estimate) -> str:
    """Format `+0.041 (95% CI +0.012 to +0.070)`: a difference with its 95% interval."""
    return f"{signed(difference.value)} (95% CI {signed(difference.low)} to {signed(difference.high)})"


def confidence(difference: Estimate, unit: str) -> str:
    """Format `+0.041 in accuracy, 95% CI +0.012 to +0.070`."""
    return f"{signed(difference.value)} {unit}, 95% CI {signed(difference.low)} to {signed(difference.high)}"


def by_part(parts: Parts) -> str:
    """Format `By task: genre +0.111 (95% CI ...); next ...`; empty if there are fewer than two."""
    listed = "; ".join(f"{name} {interval(effect)}" for name, effect in parts.effects)
    return f"By {parts.by}: {listed}." if len(parts.effects) > 1 else ""


def signed(value: float) -> str:
    """Format three decimals with a sign, and a minus that is as wide as the plus."""
    text = f"{value:+}".replace("inf", "\u221e") if isinf(value) else f"{round(value, 3) + 0.0:+.3f}"
    return text.replace("-", "\u2212")


def number(value: float) -> str:
    """Format three decimals."""
    return "\u221e" if isinf(value) else f"{value:.3f}"


def setting(value: Any) -> str:
    """Format a setting: numbers with 3 significant digits, others as they are."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(setting, value))}]"
    return str(value)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Format `lambda = 1.23, density = 0.5`."""
    return ", ".join(f"{key} = {setting(value)}" for key, value in settings.items())


def percent(share: float) -> str:
    """Format `12.3%`."""
    return f"{100 * share:.1f}%"


def listed(names: Sequence[str], word: str = "and") -> str:
    """Format `a, b and c`."""
    return f"{', '.join(names[:-1])} {word} {names[-1]}" if names[1:] else "".join(names)
