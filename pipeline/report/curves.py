"""Data-efficiency curves: scores against CT tokens, a line a method, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.task_set import GOLD_BITS
from pipeline.report.records import WITHOUT_CT, Row, label
from pipeline.report.results import OVERALL, Measure, Point, languages, measures, points
from pipeline.report.style import Look, budget_axis, dodge, figure, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDEST = 4  # panels side by side
LEVELS = {"base": ("#a0a0a0", (0, (6, 3))), "sft": ("#555555", (0, (3, 2)))}
DOTS = {"chance": ("#b0b0b0", (0, (1, 2.2))), "trivial": ("#7f5f3f", (0, (1, 1.2)))}


def write(rows: Sequence[Row], target: str, names: Mapping[str, str], out: Path) -> Path:
    """Writes curves.png (2,400 pixels wide) and curves.svg; returns the path of the PNG."""
    png = out / "curves.png"
    figure(partial(_draw, rows, target, names), [out / "curves.svg", png])
    return png


def _draw(rows: Sequence[Row], target: str, names: Mapping[str, str], plt: Any) -> Figure:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = {
        language: [
            measure for measure in measures(rows, language) if measure.metric != GOLD_BITS or measure.name in OVERALL
        ]
        for language in languages(rows, target)
    }
    most = max(len(panels) for panels in shown.values())
    columns = most if most <= WIDEST else min(WIDEST, -(-most // 2))
    lines = [
        (language, panels[start : start + columns])
        for language, panels in shown.items()
        for start in range(0, len(panels), columns)
    ]
    drawn: Figure
    drawn, grid = plt.subplots(
        len(lines),
        columns,
        figsize=(12, 0.7 + 2.45 * len(lines)),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05),
    )
    methods = looks(row.method for row in rows)
    budgets = sorted({row.ct_tokens for row in rows if row.ct_tokens})
    for axes_of_line, (language, panels) in zip(grid, lines, strict=True):
        for axes in axes_of_line[len(panels) :]:
            axes.set_axis_off()
        for axes, measure in zip(axes_of_line, panels, strict=False):
            axes.set_title(f"{names.get(language, language)}: {measure.name}")
            _panel(axes, measure, points(rows, measure), methods, budgets)
            if measure.lower_is_better:
                axes.set_ylabel("lower is better", labelpad=1)
            elif axes is axes_of_line[0]:
                axes.set_ylabel("accuracy")
    for axes in grid[-1][: len(lines[-1][1])]:
        axes.set_xlabel("continual pre-training tokens")
    _legend(drawn, grid)
    return drawn


def _panel(
    axes: Axes,
    measure: Measure,
    scores: Mapping[tuple[str, int], Point],
    methods: Mapping[str, Look],
    budgets: Sequence[int],
) -> None:
    """One measure: levels that no budget changes as horizontal lines, then the curves."""
    axes.tick_params(length=2.5)
    for name, value in (("chance", measure.chance), ("trivial", measure.trivial)):
        if value is not None:
            color, dots = DOTS[name]
            axes.axhline(
                value,
                color=color,
                linestyle=dots,
                linewidth=1.3,
                label=f"{name} level" if name == "chance" else "trivial baseline",
                zorder=1,
            )
    for name in WITHOUT_CT:
        if (name, 0) in scores:
            color, dashes = LEVELS[name]
            axes.axhline(
                scores[name, 0].value, color=color, linestyle=dashes, linewidth=1.3, label=label(name), zorder=1.5
            )
    if budgets:
        budget_axis(axes, budgets)
    else:
        axes.set_xticks([])
    for number, (method, look) in enumerate(methods.items()):
        dodged = zip(dodge(budgets, number, len(methods)), budgets, strict=True)
        curve = [(x, scores[method, budget]) for x, budget in dodged if (method, budget) in scores]
        if curve:
            _curve(axes, method, look, curve)


def _curve(axes: Axes, method: str, look: Look, curve: Sequence[tuple[float, Point]]) -> None:
    """A method's points, each with its x, over their error bars."""
    xs, values = [x for x, _ in curve], [point.value for _, point in curve]
    spread = [
        [max(0.0, point.value - point.low) for _, point in curve],
        [max(0.0, point.high - point.value) for _, point in curve],
    ]
    axes.errorbar(xs, values, yerr=spread, fmt="none", ecolor=look.color, elinewidth=1.0, alpha=0.45, zorder=2)
    axes.plot(
        xs,
        values,
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markersize=4.2,
        markeredgecolor="white",
        markeredgewidth=0.5,
        linewidth=1.9 if method in ("ct", "ct_then_sft") else 1.5,
        label=label(method),
        zorder=3,
    )


def _legend(drawn: Figure, grid: Any) -> None:
    """One legend for all panels, above them: curves first."""
    entries: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    last = ("base", "SFT", "chance level", "trivial baseline")
    ordered = sorted(entries, key=lambda name: last.index(name) if name in last else -1)
    drawn.legend(
        [entries[name] for name in ordered],
        ordered,
        loc="outside upper center",
        ncols=min(len(ordered), 6),
        frameon=False,
        fontsize=9,
        handlelength=2.6,
        columnspacing=1.8,
    )
