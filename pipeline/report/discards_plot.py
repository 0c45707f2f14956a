"""What merges discarded of SFT against CT tokens, a line a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.discards import Discarded
from pipeline.report.records import label
from pipeline.report.style import Look, budget_axis, dodge, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS: tuple[tuple[str, Callable[[Discarded], float]], ...] = (
    ("Trimmed or dropped, of all", lambda shares: shares.of_all.trimmed),
    ("Lost in sign conflict, of all", lambda shares: shares.of_all.lost),
    ("Lost in sign conflict, of the top 5 %", lambda shares: shares.of_top["5%"].lost),
)


def write(discarded: Sequence[Discarded], methods: dict[str, Look], out: Path) -> Path:
    """Writes an SVG of three panels."""
    figure(partial(_draw, discarded, methods), [out])
    return out


def _draw(discarded: Sequence[Discarded], methods: dict[str, Look], plt: Any) -> Figure:
    from matplotlib.ticker import PercentFormatter

    drawn: Figure
    drawn, grid = plt.subplots(1, len(PANELS), figsize=(12, 3.1), layout="constrained")
    budgets = sorted({merge.ct_tokens for merge in discarded})
    order = list(dict.fromkeys(merge.method for merge in discarded))
    for axes, (title, share) in zip(grid, PANELS, strict=True):
        axes.set_title(title)
        budget_axis(axes, budgets)
        axes.tick_params(length=2.5)
        for number, method in enumerate(order):
            curve = {merge.ct_tokens: share(merge) for merge in discarded if merge.method == method}
            look, dodged = methods[method], dodge(budgets, number, len(order))
            axes.plot(
                [x for budget, x in zip(budgets, dodged, strict=True) if budget in curve],
                [curve[budget] for budget in budgets if budget in curve],
                color=look.color,
                linestyle=look.line,
                marker=look.marker,
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                linewidth=1.5,
                alpha=0.9,
                label=label(method),
            )
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 0.01))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_xlabel("continual pre-training tokens")
    grid[0].set_ylabel("share of SFT's parameters")
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False, fontsize=9)
    return drawn
