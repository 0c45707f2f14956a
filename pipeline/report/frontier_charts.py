"""Charts of frontiers: the plane of a budget, the gap under it, and the gaps of all budgets."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.chart_data import Table
from pipeline.report.looks import INK, SOFT, Look
from pipeline.report.paired import MARGINS
from pipeline.report.score_charts import VERDICTS
from pipeline.report.vega import Chart, Spec, method_scales, sized

MARGIN = MARGINS["accuracy"]
LEFT = {"minExtent": 46}  # so that the plots of plane and gap begin at one place
BY_PAIR = {"pair": "pair", "tokens": "frontier_budget"}
BY_METHOD = {"method": "methods", "tokens": "frontier_budget"}
SINGLE_SEED = "datum.kind == 'seed'"
KEPT: Spec = {"filter": "datum.kind == 'kept'"}


def _bits(language: str) -> Spec:
    return {
        "field": "bits",
        "type": "quantitative",
        "title": f"bits per byte of {language} text (right is better)",
        "scale": {"zero": False, "nice": False, "reverse": True, "padding": 24},
        "axis": {"grid": True},
    }


def frontiers(drawn: Sequence[Look], language: str, width: int | None = None) -> Chart:
    """Every knob value of every method at a budget: a line per method, seeds faint, pruned points hollow."""
    look = method_scales(drawn, legend=width is not None)
    up = {"field": "accuracy", "type": "quantitative", "title": "mean accuracy", "scale": {"zero": False}, "axis": LEFT}
    place = {"x": _bits(language), "y": up}
    data = {"name": "frontiers"}
    hover = [
        {"field": "title", "title": "method"},
        {"field": "knob"},
        {"field": "bits", "title": "bits per byte", "format": ".3f"},
        {"field": "accuracy", "title": "mean accuracy", "format": ".3f"},
        {"field": "kind"},
    ]
    layers: list[Spec] = [
        {
            "data": {"name": "windows"},
            "mark": {"type": "rect", "color": SOFT, "opacity": 0.13, "tooltip": False},
            "encoding": {"x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
        },
        {
            "data": data,
            "transform": [KEPT],
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {
                **place,
                "order": {"field": "bits"},
                "color": look["color"],
                "strokeDash": look["strokeDash"],
            },
        },
        {  # one layer for all kinds of points: Vega warns of a layer without data
            "data": data,
            "mark": {"type": "point", "strokeWidth": 1.6},
            "encoding": {
                **place,
                "fill": {**look["color"], "legend": None},
                "stroke": {**look["color"], "legend": None},
                "fillOpacity": {"condition": {"test": "datum.kind == 'pruned'", "value": 0}, "value": 1},
                "opacity": {"condition": {"test": SINGLE_SEED, "value": 0.35}, "value": 1},
                "strokeOpacity": {"condition": {"test": SINGLE_SEED, "value": 0}, "value": 1},
                "size": {"condition": {"test": SINGLE_SEED, "value": 18}, "value": 70},
                "shape": look["shape"],
                "tooltip": hover,
            },
        },
        {
            "data": data,
            "transform": [{"filter": "datum.kind != 'seed'"}],
            "mark": {"type": "text", "dy": -11, "fontSize": 10.5, "color": INK, "tooltip": False},
            "encoding": {**place, "text": {"field": "knob"}},
        },
    ]
    return Chart("frontiers", sized({"layer": layers}, 330, width), {"frontiers": BY_METHOD, "windows": BY_PAIR})


def gap(language: str, width: int | None = None) -> Chart:
    """The gap at single bits over the window with a 95% band, its mean at the window's end of fewer bits."""
    up: Spec = {"type": "quantitative", "title": "gap in accuracy", "axis": LEFT}
    ends: Spec = {"y": {**up, "field": "low"}, "y2": {"field": "high"}}
    across = _bits(language)
    hover = [
        {"field": "bits", "title": "bits per byte", "format": ".3f"},
        {"field": "value", "title": "gap in accuracy", "format": "+.3f"},
        {"field": "low", "title": "95% CI from", "format": "+.3f"},
        {"field": "high", "title": "95% CI to", "format": "+.3f"},
    ]
    layers: list[Spec] = [
        *_margin("y"),
        {  # not seen: the axis is that of the plane above
            "data": {"name": "frontiers"},
            "mark": {"type": "point", "opacity": 0, "tooltip": False},
            "encoding": {"x": across, "y": {**up, "datum": 0}},
        },
        {
            "data": {"name": "gap"},
            "mark": {"type": "area", "opacity": 0.25, "color": "#0072B2", "tooltip": False},
            "encoding": {"x": across, **ends},
        },
        {
            "data": {"name": "gap"},
            "mark": {"type": "line", "strokeWidth": 2, "color": "#0072B2", "point": False},
            "encoding": {"x": across, "y": {**up, "field": "value"}, "tooltip": hover},
        },
        {
            "data": {"name": "totals"},
            "mark": {"type": "rule", "strokeWidth": 2.4, "color": INK, "xOffset": 9},
            "encoding": {"x": across, **ends},
        },
        {
            "data": {"name": "totals"},
            "mark": {"type": "point", "filled": True, "shape": "diamond", "size": 110, "color": INK, "xOffset": 9},
            "encoding": {"x": across, "y": {**up, "field": "value"}, "tooltip": hover},
        },
    ]
    filters = {"gap": BY_PAIR, "totals": BY_PAIR, "frontiers": BY_METHOD}
    return Chart("gap", sized({"layer": layers}, 190, width), filters)


def forest(table: Table, width: int | None = None) -> Chart:
    """The gap of every pair and budget: 95% CI thick, that of Holm thin, MDE as a tick, families in grey."""
    rows = table.records()
    across: Spec = {"type": "quantitative", "title": "gap in accuracy"}
    row: Spec = {"field": "row", "type": "nominal", "sort": None, "title": None, "axis": None}
    colour: Spec = {
        "field": "verdict",
        "type": "nominal",
        "scale": {"domain": list(VERDICTS), "range": list(VERDICTS.values())},
        "legend": None,
    }
    hover = [{"field": name} for name in ("row", "family", "value", "low", "high", "mde", "verdict", "note")]
    whole: Spec = {"filter": "datum.family == 'all'"}
    families: list[Spec] = [
        {"filter": "datum.family != 'all'"},
        {"window": [{"op": "row_number", "as": "place"}], "groupby": ["row"]},
    ]
    grey: Spec = {"data": {"name": "forest"}, "transform": families}
    below: Spec = {"field": "place", "type": "ordinal", "scale": {"domain": [-1, 0, 1, 2, 3]}}
    main: Spec = {"data": {"name": "forest"}, "transform": [whole, {"calculate": "0", "as": "place"}]}
    names: list[Spec] = [whole, {"calculate": "-1", "as": "place"}]

    def rule(low: str, high: str, thick: float) -> Spec:
        return {
            **main,
            "mark": {"type": "rule", "strokeWidth": thick},
            "encoding": {
                "x": {**across, "field": low},
                "x2": {"field": high},
                "yOffset": below,
                "color": colour,
                "tooltip": hover,
            },
        }

    layers: list[Spec] = [
        *_margin("x"),
        *([rule("low_holm", "high_holm", 1.0)] if any(each["low_holm"] is not None for each in rows) else []),
        rule("low", "high", 3.2),
        {
            **main,
            "mark": {"type": "point", "filled": True, "size": 85, "opacity": 1},
            "encoding": {"x": {**across, "field": "value"}, "yOffset": below, "color": colour, "tooltip": hover},
        },
        {
            **main,
            "mark": {"type": "tick", "thickness": 1.6, "height": 9, "color": INK, "tooltip": False},
            "encoding": {"x": {**across, "field": "mde"}, "yOffset": below},
        },
        {  # inside the plot, as a telephone has no room beside it
            "data": {"name": "forest"},
            "transform": names,
            "mark": {"type": "text", "align": "left", "fontSize": 11.5, "color": INK, "tooltip": False},
            "encoding": {"x": {"value": 2}, "yOffset": below, "text": {"field": "row"}},
        },
    ]
    of_families: list[Spec] = [
        {
            **grey,
            "mark": {"type": "rule", "strokeWidth": 1.6, "color": SOFT, "opacity": 0.7},
            "encoding": {
                "x": {**across, "field": "low"},
                "x2": {"field": "high"},
                "yOffset": below,
                "tooltip": hover,
            },
        },
        {
            **grey,
            "mark": {"type": "point", "filled": True, "size": 30, "color": SOFT, "opacity": 0.9},
            "encoding": {"x": {**across, "field": "value"}, "yOffset": below, "tooltip": hover},
        },
    ]
    if any(each["family"] != "all" for each in rows):
        layers += of_families  # Vega warns of a layer without data
    spec: Spec = {"encoding": {"y": row}, "layer": layers}
    return Chart("forest", sized(spec, 68 * max(1, len({each["row"] for each in rows})), width))


def _margin(channel: str) -> list[Spec]:
    """The strip within which a gap does not matter, and the line of no gap."""
    strip = {channel: {"datum": -MARGIN, "type": "quantitative"}, f"{channel}2": {"datum": MARGIN}}
    zero = {channel: {"datum": 0, "type": "quantitative"}}
    other = {"y": None} if channel == "x" else {}
    return [
        {
            "data": {"values": [{}]},
            "mark": {"type": "rect", "opacity": 0.14, "color": SOFT, "tooltip": False},
            "encoding": {**strip, **other},
        },
        {
            "data": {"values": [{}]},
            "mark": {"type": "rule", "strokeDash": [3, 3], "color": SOFT, "tooltip": False},
            "encoding": {**zero, **other},
        },
    ]
