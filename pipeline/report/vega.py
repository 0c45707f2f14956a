"""What all charts share: Vega-Lite specifications as values, how they look, and axes. Pure.

The page and the figures for papers are drawn from these same values (score_charts.py, merge_charts.py); the data stand
beside them (chart_data.py). In the page a chart is as wide as its column and methods are chosen beside it; a figure has
a width of its own and a legend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.report.looks import INK, SOFT, Look

Spec = dict[str, Any]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, which nothing fetches
TOKENS = (
    "datum.value >= 1e9 ? format(datum.value / 1e9, '~r') + 'B' : datum.value >= 1e6 ? "
    "format(datum.value / 1e6, '~r') + 'M' : datum.value >= 1e3 ? format(datum.value / 1e3, '~r') + 'k' : datum.value"
)
OF_TOKENS = TOKENS.replace("datum.value", "datum.tokens")
BUDGET = f"datum.tokens == 0 ? 'no CT' : {OF_TOKENS}"
SEQUENTIAL = ("#f2f5f9", "#9ec9e2", "#3c93c2", "#0d5a91", "#08306b")


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    spec: Vega-Lite, with named data. filters: by the name of data, which column must equal which choice of the reader
    (of methods: be among them). params: by the spec's parameter, the choice that it takes.
    """

    name: str
    spec: Spec
    filters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


def theme(ink: str, soft: str, line: str) -> Spec:
    """Vega's config, with these colours for text, for what stands back, and for lines of a grid."""
    font = 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
    return {
        "background": None,
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelColor": soft,
            "titleColor": ink,
            "domainColor": soft,
            "tickColor": line,
            "gridColor": line,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "tickSize": 4,
        },
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 260},
        "title": {"color": ink, "fontSize": 13, "anchor": "start"},
        "header": {"labelColor": ink, "titleColor": ink},
        "text": {"color": ink, "fontSize": 11},
    }


def method_scales(drawn: Sequence[Look], legend: bool) -> dict[str, Spec]:
    """The colour, dash and shape of each method; in a legend by its title where there is one."""
    domain = [look.title for look in drawn]

    def scale(values: list[Any], title: str | None = None) -> Spec:
        guide = {"title": title, "orient": "bottom", "columns": 4, "symbolLimit": 0} if legend else None
        return {"field": "title", "type": "nominal", "scale": {"domain": domain, "range": values}, "legend": guide}

    return {
        "color": scale([look.color for look in drawn]),
        "strokeDash": scale([list(look.dash) for look in drawn]),
        "shape": scale([look.shape for look in drawn]),
    }


def sized(spec: Spec, height: int, width: int | None) -> Spec:
    """As wide as its place, or of this width."""
    across: Any = "container" if width is None else width
    fit = {"autosize": {"type": "fit-x", "contains": "padding"}} if width is None else {}
    return {"$schema": SCHEMA, "width": across, "height": height, **fit, **spec}


def tokens_axis(budgets: Sequence[int]) -> Spec:
    """CT tokens on a log axis, with ticks at the budgets where these are few."""
    ticks = {"values": list(budgets)} if len(budgets) <= 8 else {}
    span = max(budgets, default=1) / max(1, min(budgets, default=1))
    margin = max(1.12, span**0.04)
    domain = [min(budgets, default=1) / margin, max(budgets, default=1) * margin]
    return {
        "field": "tokens",
        "type": "quantitative",
        "title": "CT tokens (log scale)",
        "scale": {"type": "log", "domain": domain, "nice": False},
        "axis": {"labelExpr": TOKENS, "grid": False, "labelOverlap": True, **ticks},
    }


def heat_map(
    x: Spec, y: Spec, color: Spec, text: Spec, *, dark: str, row_labels: int | None, tooltip: Sequence[Spec] = ()
) -> Spec:
    """Encoding and layers of a heat map: cells, and in each its text, white where the expression `dark` holds.

    x, y, color and text are channels; the axes are ordinal, with the columns named above and the rows within
    `row_labels` pixels (None: not named).
    """
    plain: Spec = {"domain": False, "ticks": False}
    beside = {**plain, "labelLimit": row_labels} if row_labels else None
    cells: Spec = {"color": color, "tooltip": list(tooltip)} if tooltip else {"color": color}
    ink = {"condition": {"test": dark, "value": "#fff"}, "value": "#111"}
    return {
        "encoding": {
            "x": {"type": "ordinal", "title": None, **x, "axis": {**plain, "labelAngle": 0, "orient": "top"}},
            "y": {"type": "ordinal", "title": None, **y, "axis": beside},
        },
        "layer": [
            {"mark": {"type": "rect"}, "encoding": cells},
            {"mark": {"type": "text", "fontSize": 11}, "encoding": {"text": text, "color": ink}},
        ],
    }


def colored(value: Any, colours: Mapping[str, str]) -> Any:
    """A spec with INK and SOFT put into colours: what a page says by its style, a figure must name."""
    if isinstance(value, dict):
        return {key: colored(each, colours) for key, each in value.items()}
    if isinstance(value, list):
        return [colored(each, colours) for each in value]
    return colours.get(value, value) if isinstance(value, str) else value


PAPER_COLOURS = {INK: "#111111", SOFT: "#777777"}
PAGE_COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)"}
