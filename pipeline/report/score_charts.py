"""Charts of scores, and of the claims about them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.looks import INK, SOFT, Look
from pipeline.report.page_tables import MOST_MARGINS
from pipeline.report.vega import BUDGET, Chart, Spec, method_scales, sized, tokens_axis

VERDICTS = {
    "supported": "#009E73",
    "equivalent": "#0072B2",
    "ruled out": "#D55E00",
    "contradicted": "#CC79A7",
    "inconclusive": SOFT,
    "exploratory": SOFT,
    "no data": SOFT,
}
VALUES = [
    {"field": "title", "title": "method"},
    {"field": "budget", "title": "CT tokens"},
    {"field": "value", "title": "value", "format": ".3f"},
    {"field": "low", "title": "95% CI from", "format": ".3f"},
    {"field": "high", "title": "95% CI to", "format": ".3f"},
    {"field": "seeds", "title": "seeds"},
    {"field": "spread", "title": "range over seeds"},
]


def curves(drawn: Sequence[Look], budgets: Sequence[int], width: int | None = None) -> Chart:
    """The data-efficiency curves: a measure against CT tokens, bands of 95%, levels that no budget changes."""
    look = method_scales(drawn, legend=width is not None)
    across = tokens_axis(budgets)
    up = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False, "nice": True}}
    named = [{"calculate": BUDGET, "as": "budget"}]
    curve: Spec = {"data": {"name": "scores"}, "transform": [{"filter": "datum.tokens > 0"}, *named]}
    level: Spec = {"data": {"name": "scores"}, "transform": [{"filter": "datum.tokens == 0"}, *named]}
    ends: Spec = {"y": {"field": "low", "type": "quantitative", "title": None}, "y2": {"field": "high"}}
    right: Spec = {"align": "right", "baseline": "bottom", "dy": -3, "fontSize": 11}
    at_end: Spec = {"x": {"value": "width"}, "y": up}
    layers = [
        {
            "data": {"name": "levels"},
            "mark": {"type": "rule", "strokeDash": [1, 3], "strokeWidth": 1.4, "color": SOFT},
            "encoding": {"y": up, "tooltip": [{"field": "level"}, {"field": "value", "format": ".3f"}]},
        },
        {
            "data": {"name": "levels"},
            "mark": {"type": "text", **right, "color": SOFT},
            "encoding": {**at_end, "text": {"field": "level"}},
        },
        {
            **level,
            "mark": {"type": "rule", "strokeWidth": 1.6},
            "encoding": {"y": up, "color": look["color"], "strokeDash": look["strokeDash"], "tooltip": VALUES},
        },
        {
            **level,
            "mark": {"type": "text", **right, "align": "left", "color": SOFT},
            "encoding": {"x": {"value": 4}, "y": up, "text": {"field": "title"}},
        },
        {
            **curve,
            "mark": {"type": "area", "opacity": 0.1, "tooltip": False},
            "encoding": {"x": across, **ends, "color": {**look["color"], "legend": None}},
        },
        {
            **curve,
            "mark": {"type": "rule", "opacity": 0.4, "tooltip": False},
            "encoding": {"x": across, **ends, "color": {**look["color"], "legend": None}},
        },
        {
            **curve,
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {"x": across, "y": up, "color": look["color"], "strokeDash": look["strokeDash"]},
        },
        {
            **curve,
            "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
            "encoding": {"x": across, "y": up, "color": look["color"], "shape": look["shape"], "tooltip": VALUES},
        },
    ]
    by_choice = {"scores": {"measure": "measure", "method": "methods"}, "levels": {"measure": "measure"}}
    return Chart("curves", sized({"layer": layers}, 400, width), by_choice)


def plane(drawn: Sequence[Look], language: str, width: int | None = None) -> Chart:
    """Bits per byte against mean accuracy: a line per method, from its smallest budget to its largest."""
    look = method_scales(drawn, legend=width is not None)
    across = {
        "field": "bits",
        "type": "quantitative",
        "title": f"bits per byte of {language} text (right is better)",
        "scale": {"zero": False, "reverse": True},
        "axis": {"grid": True},
    }
    up = {
        "field": "accuracy",
        "type": "quantitative",
        "title": "mean accuracy (share of items)",
        "scale": {"zero": False},
    }
    hover = [
        {"field": "title", "title": "method"},
        {"field": "budget", "title": "CT tokens"},
        {"field": "bits", "title": "bits per byte", "format": ".3f"},
        {"field": "accuracy", "title": "mean accuracy", "format": ".3f"},
    ]
    place = {"x": across, "y": up}
    layers = [
        {
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {
                **place,
                "order": {"field": "tokens"},
                "color": look["color"],
                "strokeDash": look["strokeDash"],
            },
        },
        {
            "mark": {"type": "point", "filled": True, "opacity": 1},
            "encoding": {
                **place,
                "color": look["color"],
                "shape": look["shape"],
                "size": {"field": "rank", "type": "quantitative", "scale": {"range": [35, 170]}, "legend": None},
                "tooltip": hover,
            },
        },
    ]
    layers += _names(place, width)
    spec = {
        "data": {"name": "plane"},
        "transform": [
            {"calculate": BUDGET, "as": "budget"},
            {"window": [{"op": "rank", "as": "rank"}], "sort": [{"field": "tokens"}], "groupby": ["method"]},
        ],
        "layer": layers,
    }
    return Chart("plane", sized(spec, 380, width), {"plane": {"method": "methods"}})


def _names(place: Spec, width: int | None) -> list[Spec]:
    """The name of each method at its largest budget, in a page; figures have a legend."""
    if width is not None:
        return []
    last = [
        {"joinaggregate": [{"op": "max", "field": "tokens", "as": "last"}], "groupby": ["method"]},
        {"filter": "datum.tokens == datum.last"},
    ]
    mark = {"type": "text", "align": "right", "dx": -7, "dy": -9, "color": INK, "fontSize": 11, "tooltip": False}
    text = {**place, "text": {"field": "title"}, "color": {"value": INK}}
    return [{"transform": last, "mark": mark, "encoding": text}]


def price(drawn: Sequence[Look], width: int | None = None) -> Chart:
    """What a model costs against its score: a line per method, from its smallest CT budget to its largest."""
    look = method_scales(drawn, legend=width is not None)
    place: Spec = {
        "x": {"field": "paid", "type": "quantitative", "title": None, "axis": {"grid": True, "format": "~s"}},
        "y": {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}},
        "color": look["color"],
    }
    hover = [
        {"field": "title", "title": "method"},
        {"field": "budget", "title": "CT tokens"},
        {"field": "paid", "title": "cost", "format": ",.4~g"},
        {"field": "accuracy", "title": "mean accuracy", "format": ".3f"},
        {"field": "bits", "title": "bits per byte", "format": ".3f"},
    ]
    points: Spec = {**place, "shape": look["shape"], "tooltip": hover}
    spec = {
        "data": {"name": "price"},
        "params": [{"name": "cost", "value": "time"}, {"name": "scored", "value": "accuracy"}],
        "transform": [
            {"calculate": "datum[cost]", "as": "paid"},
            {"calculate": "datum[scored]", "as": "value"},
            {"calculate": BUDGET, "as": "budget"},
        ],
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 1.8},
                "encoding": {**place, "order": {"field": "tokens"}, "strokeDash": look["strokeDash"]},
            },
            {"mark": {"type": "point", "filled": True, "size": 80, "opacity": 1}, "encoding": points},
            *_names(place, width),
        ],
    }
    by_choice = {"price": {"method": "methods"}}
    return Chart("price", sized(spec, 320, width), by_choice, {"cost": "cost", "scored": "scored"})


def predictions(drawn: Sequence[Look], width: int | None = None) -> Chart:
    """How often each label was the answer to one task at one budget: a group of bars per label, a bar per method."""
    look = method_scales(drawn, legend=width is not None)
    spec = {
        "data": {"name": "predictions"},
        "transform": [{"calculate": BUDGET, "as": "budget"}],
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "label", "type": "nominal", "title": None, "axis": {"labelAngle": -30}, "sort": None},
            "xOffset": {"field": "title", "type": "nominal", "sort": [look.title for look in drawn]},
            "y": {"field": "share", "type": "quantitative", "title": "share of answers", "axis": {"format": ".0%"}},
            "color": look["color"],
            "tooltip": [
                {"field": "title", "title": "method"},
                {"field": "budget", "title": "CT tokens"},
                {"field": "label"},
                {"field": "share", "format": ".1%"},
            ],
        },
    }
    by_choice = {"predictions": {"task": "task", "method": "methods", "tokens": "budget"}}
    return Chart("predictions", sized(spec, 260, width), by_choice)


def claims(count: int, width: int | None = None) -> Chart:
    """The effect of each claim with its interval, in margins: within the band an effect does not matter."""
    verdicts = list(VERDICTS)
    across = {"type": "quantitative", "title": "effect divided by margin"}
    limits = {"scale": {"domain": [-MOST_MARGINS, MOST_MARGINS], "clamp": True}}
    row = {"field": "row", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 120, "grid": False}}
    colour = {
        "field": "verdict",
        "type": "nominal",
        "scale": {"domain": verdicts, "range": list(VERDICTS.values())},
        "legend": None,
    }
    hover = [{"field": "text", "title": "claim"}, {"field": "verdict"}, {"field": "effect"}]
    beyond = {  # of effects that the chart cuts
        "condition": [
            {"test": f"datum.value >= {MOST_MARGINS}", "value": "triangle-right"},
            {"test": f"datum.value <= -{MOST_MARGINS}", "value": "triangle-left"},
        ],
        "value": "circle",
    }
    spec = {
        "data": {"name": "claims"},
        "encoding": {"y": row},
        "layer": [
            {
                "transform": [{"calculate": "-1", "as": "from"}, {"calculate": "1", "as": "to"}],
                "mark": {"type": "bar", "opacity": 0.14, "color": SOFT, "height": {"band": 1}, "tooltip": False},
                "encoding": {"x": {**across, **limits, "field": "from"}, "x2": {"field": "to"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2.2},
                "encoding": {
                    "x": {**across, **limits, "field": "low"},
                    "x2": {"field": "high"},
                    "color": colour,
                    "tooltip": hover,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {
                    "x": {**across, **limits, "field": "value"},
                    "color": colour,
                    "shape": beyond,
                    "tooltip": hover,
                },
            },
        ],
    }
    return Chart("claims", sized(spec, 24 * max(1, count), width))
