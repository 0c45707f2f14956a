"""What charts share: their type, how methods are drawn, and pieces of Vega-Lite. Pure.

The page and the figures for papers are drawn from the same values. In the page a chart is as wide as its column and
methods are chosen next to it; a figure has a width and a legend. A colour is a family of methods, a dash and a shape a
member. Colours are those of Okabe and Ito, which most colour-blind people can tell apart; nothing is shown by colour
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from pandas import DataFrame

from merge.methods import METHODS
from pipeline.baselines import BASELINES
from pipeline.report.formatting import labels
from pipeline.report.records import methods_in_order

Spec = dict[str, Any]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, which nothing fetches
TOKENS = (
    "datum.value >= 1e9 ? format(datum.value / 1e9, '~r') + 'B' : datum.value >= 1e6 ? "
    "format(datum.value / 1e6, '~r') + 'M' : datum.value >= 1e3 ? format(datum.value / 1e3, '~r') + 'k' : datum.value"
)
BUDGET: Spec = {
    "calculate": f"datum.tokens == 0 ? 'no CT' : {TOKENS.replace('datum.value', 'datum.tokens')}",
    "as": "budget",
}
SEQUENTIAL = ("#f2f5f9", "#9ec9e2", "#3c93c2", "#0d5a91", "#08306b")
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D31")
SHAPES = ("circle", "triangle-up", "triangle-down", "cross", "diamond", "square", "triangle-left", "triangle-right")
DASHES = ((1, 0), (6, 3), (2, 2), (9, 3, 2, 3), (4, 1))
INK, SOFT = "ink", "soft"  # the text's colours, which are not the same on paper and in the dark
PAPER_COLOURS = {INK: "#111111", SOFT: "#777777"}
PAGE_COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)"}
GREYS = {"base": "#a3a3a3", "sft": "#858585", "ct": SOFT, "ct_then_sft": INK}
VERDICT_COLOURS = {
    "supported": "#009E73",
    "equivalent": "#0072B2",
    "ruled out": "#D55E00",
    "contradicted": "#CC79A7",
    "inconclusive": SOFT,
    "exploratory": SOFT,
    "no data": SOFT,
}
TRAINED, OTHERS = "trained, not merged", "others"
SHOWN_MERGES = 5  # of as many families, in a page that was just opened


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with its data.

    spec: Vega-Lite that reads `tables` by their names; the first is the one that the chart shows, without rows there
    is nothing to draw. filters: by table, which column must equal which choice of the reader (of methods: be among
    them). params: by the spec's parameter, the choice that it takes.
    """

    name: str
    spec: Spec
    tables: Mapping[str, DataFrame]
    filters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_data(self) -> bool:
        return not next(iter(self.tables.values())).empty


@dataclass(frozen=True, kw_only=True)
class MethodStyle:
    """How a method is drawn. color: `#rrggbb`, or INK or SOFT."""

    method: str
    title: str
    family: str
    color: str
    dash: tuple[int, ...]
    shape: str


def method_styles(methods: Iterable[str], recipes: Mapping[str, str]) -> dict[str, MethodStyle]:
    """Return a style for each method. recipes: by the merge, what its recipe's `method` is, if that is known."""
    order = methods_in_order(methods)
    titles = labels(order)
    families: dict[str, list[str]] = {}
    for method in order:
        families.setdefault(family_of(method, recipes), []).append(method)
    colours = dict(zip((name for name in families if name != TRAINED), cycle(PALETTE), strict=False))
    styles = {}
    for place, (family, members) in enumerate(families.items()):
        for number, method in enumerate(members):
            dash, shape = DASHES[number % len(DASHES)], SHAPES[(place + number) % len(SHAPES)]
            if family == TRAINED:
                color, shape = GREYS.get(method.rpartition("/")[2], SOFT), SHAPES[-1 - number % len(SHAPES)]
                dash = (1, 0) if method in ("ct", "ct_then_sft") else DASHES[1 + number % (len(DASHES) - 1)]
            else:
                color = colours[family]
            styles[method] = MethodStyle(
                method=method, title=titles[method], family=family, color=color, dash=dash, shape=shape
            )
    return {method: styles[method] for method in order}


def family_of(method: str, recipes: Mapping[str, str]) -> str:
    """Return the family of a method: that of its recipe, else of the longest method that its name begins with."""
    name = method.rpartition("/")[2]  # of several reports next to each other
    if name in BASELINES:
        return TRAINED
    named = [other for other in METHODS if name == other or name.startswith(f"{other}_")]
    recipe = recipes.get(method) or max(named, key=len, default="")
    if recipe not in METHODS:
        return OTHERS
    return METHODS[recipe].title.removesuffix(" linear").removesuffix(" TIES")


def shown_first(styles: Mapping[str, MethodStyle]) -> list[str]:
    """List the methods that a page shows first: models without CT, CT, CT-then-SFT, the upper bound, and of each family
    the first merge. Of several reports in one: CT-then-SFT of each, and the merges of the first. Scores play no part.
    """
    trained = [method for method in ("base", "sft", "ct", "ct_then_sft", "target_sft") if method in styles]
    trained = trained or [method for method in styles if method.endswith("/ct_then_sft")]
    first: dict[str, str] = {}
    for method, style in styles.items():
        if style.family not in (TRAINED, OTHERS):
            first.setdefault(style.family, method)
    return [*trained, *islice(first.values(), SHOWN_MERGES)] or list(styles)[: 2 * SHOWN_MERGES]


def method_scales(styles: Sequence[MethodStyle], legend: bool) -> dict[str, Spec]:
    """Return the colour, dash and shape of each method as channels; with a legend by title if wanted."""
    domain = [style.title for style in styles]

    def scale(values: list[Any]) -> Spec:
        guide = {"title": None, "orient": "bottom", "columns": 4, "symbolLimit": 0} if legend else None
        return {"field": "title", "type": "nominal", "scale": {"domain": domain, "range": values}, "legend": guide}

    return {
        "color": scale([style.color for style in styles]),
        "strokeDash": scale([list(style.dash) for style in styles]),
        "shape": scale([style.shape for style in styles]),
    }


def verdict_color() -> Spec:
    """Return the colour of a verdict as a channel."""
    scale = {"domain": list(VERDICT_COLOURS), "range": list(VERDICT_COLOURS.values())}
    return {"field": "verdict", "type": "nominal", "scale": scale, "legend": None}


def number(field: str | None, title: str | None, **more: Any) -> Spec:
    """Return a channel of numbers."""
    return {**({"field": field} if field else {}), "type": "quantitative", "title": title, **more}


def tooltip(*columns: str) -> list[Spec]:
    """Return what is shown at a mark: `field`, `field: title` or `field: title: format` for each column."""
    names = ("field", "title", "format")
    return [{name: text for name, text in zip(names, column.split(": "), strict=False) if text} for column in columns]


def sized(spec: Spec, height: int, width: int | None) -> Spec:
    """Return a spec as wide as its place (width=None), or of a width in pixels."""
    across: Any = "container" if width is None else width
    fit = {"autosize": {"type": "fit-x", "contains": "padding"}} if width is None else {}
    return {"$schema": SCHEMA, "width": across, "height": height, **fit, **spec}


def tokens_axis(budgets: Sequence[int]) -> Spec:
    """Return CT tokens on a log axis, with ticks at the budgets if these are few."""
    ticks = {"values": list(budgets)} if len(budgets) <= 8 else {}
    span = max(budgets, default=1) / max(1, min(budgets, default=1))
    margin = max(1.12, span**0.04)
    domain = [min(budgets, default=1) / margin, max(budgets, default=1) * margin]
    scale = {"type": "log", "domain": domain, "nice": False}
    axis = {"labelExpr": TOKENS, "grid": False, "labelOverlap": True, **ticks}
    return number("tokens", "CT tokens (log scale)", scale=scale, axis=axis)


def heat_map(
    *, x: Spec, y: Spec, color: Spec, text: Spec, dark: str, row_labels: int | None, hover: Sequence[Spec] = ()
) -> Spec:
    """Return encoding and layers of a heat map: cells, and in each its text, white if the expression `dark` holds.

    x, y, color and text are channels; the axes are ordinal, with the columns named above and the rows within
    `row_labels` pixels (None: not named).
    """
    plain: Spec = {"domain": False, "ticks": False}
    rows = {**plain, "labelLimit": row_labels} if row_labels else None
    cells: Spec = {"color": color, "tooltip": list(hover)} if hover else {"color": color}
    ink = {"condition": {"test": dark, "value": "#fff"}, "value": "#111"}
    return {
        "encoding": {
            "x": {"type": "ordinal", "title": None, **x, "axis": {**plain, "labelAngle": 0, "orient": "top"}},
            "y": {"type": "ordinal", "title": None, **y, "axis": rows},
        },
        "layer": [
            {"mark": {"type": "rect"}, "encoding": cells},
            {"mark": {"type": "text", "fontSize": 11}, "encoding": {"text": text, "color": ink}},
        ],
    }


def theme(ink: str, soft: str, line: str) -> Spec:
    """Return Vega's config, with these colours for text, for what stands back, and for lines of a grid."""
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


def colored(value: Any, colours: Mapping[str, str]) -> Any:
    """Return a spec with INK and SOFT put into colours: what a page styles, a figure must name."""
    if isinstance(value, dict):
        return {key: colored(each, colours) for key, each in value.items()}
    if isinstance(value, list):
        return [colored(each, colours) for each in value]
    return colours.get(value, value) if isinstance(value, str) else value
