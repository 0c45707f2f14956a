"""How figures look: one look for a method in all of them.

Colours are those of Okabe and Ito, which most colour-blind people can tell apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import publish
from common.units import format_tokens
from pipeline.report.results import methods_in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = ("o", "^", "v", "P", "D", "X", "<", ">")
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "svg.hashsalt": "slackmerge",  # the same ids, and so the same bytes, every time
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a method."""

    color: str
    marker: str
    line: str = "-"


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method that has a curve: black and grey for what is not merged, then the palette, then dashed."""
    order = [method for method in methods_in_order(methods) if method not in ("base", "sft")]
    fixed = {"ct": Look("#8a8a8a", "s"), "ct_then_sft": Look("#000000", "s")}
    merges = [method for method in order if method not in fixed]
    lines = ("-", "--", "-.")
    cycled = {
        method: Look(
            PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)], lines[number // len(PALETTE) % len(lines)]
        )
        for number, method in enumerate(merges)
    }
    return {method: fixed.get(method) or cycled[method] for method in order}


def budget_axis(axes: Axes, budgets: Sequence[int]) -> None:
    """A log axis of CT tokens, with labels such as 10k at the budgets, or at powers of ten where those are many."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    span = max(budgets) / min(budgets)
    margin = max(span**0.06, 1.15)
    axes.set_xlim(min(budgets) / margin, max(budgets) * margin)
    axes.xaxis.set_major_locator(
        FixedLocator([float(budget) for budget in budgets]) if len(budgets) <= 5 else LogLocator()
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(round(value))))


def dodge(budgets: Sequence[int], number: int, count: int) -> list[float]:
    """The budgets, moved a little sideways for curve `number` of `count`, so that error bars do not hide each other."""
    ratios = [later / earlier for earlier, later in itertools.pairwise(budgets)] or [2.0]
    width = min(0.08 * sum(map(log, ratios)), 0.5 * log(min(ratios)))  # of all curves, on the log axis
    return [budget * exp(width * (number / max(1, count - 1) - 0.5)) for budget in budgets]


def figure(draw: Callable[[Any], Figure], paths: Sequence[Path]) -> None:
    """Draws one figure and publishes it in the formats of the paths' suffixes. The same data give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(RC):
        drawn = draw(plt)
        drawn.draw_without_rendering()
        drawn.set_layout_engine(None)  # laid out once, for all formats
        for path in paths:
            kind = path.suffix.lstrip(".")
            save = partial(
                drawn.savefig, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else {"Software": None}
            )
            publish(path, save)
        plt.close(drawn)
