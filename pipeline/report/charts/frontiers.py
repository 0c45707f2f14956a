"""Charts of frontiers: accuracy against bits at a budget, the gap under it, and the gaps of all budgets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import isinf
from typing import Any

from pandas import DataFrame

from pipeline.report.charts.scores import RIGHT_IS_BETTER
from pipeline.report.charts.style import (
    INK,
    PALETTE,
    SOFT,
    Chart,
    MethodStyle,
    Spec,
    method_scales,
    number,
    sized,
    tooltip,
    verdict_color,
)
from pipeline.report.claims import Answer
from pipeline.report.data import DIGITS, frame
from pipeline.report.formatting import budget_name, label
from pipeline.report.frontier import LEAST_WINDOW
from pipeline.report.gaps import AXES, FrontierGaps, pair_name, score
from pipeline.report.inference import Estimate
from pipeline.report.paired import MARGINS

MARGIN = MARGINS["accuracy"]
LEFT = {"minExtent": 46}  # so that the plots of frontiers and gap begin at one place
BY_PAIR = {"pair": "pair", "tokens": "frontier_budget"}
BY_METHOD = {"method": "methods", "tokens": "frontier_budget"}
SINGLE_SEED = "datum.kind == 'seed'"
NO_SHARED_BITS = f"fewer than {LEAST_WINDOW:g} shared bits per byte"


def tables(shown: FrontierGaps | None, answers: Sequence[Answer]) -> dict[str, DataFrame]:
    """Return what the charts of this file show: points, windows, gaps along them and their means, and the forest."""
    along: list[tuple[Any, ...]] = []
    totals: list[tuple[Any, ...]] = []
    windows: list[tuple[Any, ...]] = []
    for gap in shown.gaps if shown else ():
        if shown and gap.window and gap.estimate:
            name, low, high = pair_name(gap), *(round(end, DIGITS) for end in gap.window)
            windows.append((name, gap.ct_tokens, low, high))
            totals.append((name, gap.ct_tokens, low, *_numbers(gap.estimate)))
            along += [
                (name, gap.ct_tokens, round(bits, DIGITS), *_numbers(estimate))
                for bits, estimate in shown.frontiers.along(gap.first, gap.second, gap.ct_tokens)
            ]
    by_bits = ("pair", "tokens", "bits", "value", "low", "high")
    return {
        "frontiers": frame(("method", "tokens", "knob", "seed", "bits", "accuracy", "kind"), _points(shown)),
        "windows": frame(("pair", "tokens", "low", "high"), windows),
        "gap": frame(by_bits, along),
        "totals": frame(by_bits, totals),
        "forest": _forest_table(shown, answers),
    }


def _points(shown: FrontierGaps | None) -> list[tuple[Any, ...]]:
    """Return on test: the mean of every knob value over seeds (kind: kept or pruned), and every seed."""
    rows: list[tuple[Any, ...]] = []
    for knob in shown.knobs if shown else ():
        assert shown is not None
        seeds = shown.frontiers.seeds_of(knob.method, knob.ct_tokens)
        groups: list[tuple[str, str, Collection[int]]] = [("all", "pruned" if knob.pruned else "kept", seeds)]
        if len(seeds) > 1:
            groups += [(str(seed), "seed", {seed}) for seed in sorted(seeds)]
        for name, kind, of in groups:
            accuracy, bits = (score(shown.frontiers.test, knob, what, of) for what in AXES)
            rows.append((knob.method, knob.ct_tokens, knob.text, name, bits, accuracy, kind))
    return rows


def _forest_table(shown: FrontierGaps | None, answers: Sequence[Answer]) -> DataFrame:
    """Return a row per pair and budget, and one per family: the gap, its interval, and Holm's of primary hypotheses.

    Empty if no pair has a gap anywhere: there is nothing to draw.
    """
    rows: list[tuple[Any, ...]] = []
    decided = _decided(answers)
    gaps = shown.gaps if shown else ()
    for gap in gaps if any(gap.estimate for gap in gaps) else ():
        pair = f"{budget_name(gap.ct_tokens)}: {label(gap.first)} \u2212 {label(gap.second)}"
        if gap.estimate is None:
            note = NO_SHARED_BITS if gap.separate else gap.missing
            row = f"{pair}, {note.rstrip('.')}"
            rows.append((row, gap.ct_tokens, "all", *[None] * 6, "", note))
            continue
        answer = decided.get((gap.first, gap.second, gap.ct_tokens))
        strict = [answer.more.get(end) if answer else None for end in ("low_holm", "high_holm")]
        mde = round(gap.estimate.mde, DIGITS) if gap.estimate.seeds > 1 else None
        verdict = answer.verdict if answer else "exploratory"
        note = "bits per byte differ on test" if gap.slipped else ""
        row = ", ".join(filter(None, (pair, verdict, note)))
        rows.append((row, gap.ct_tokens, "all", *_numbers(gap.estimate), *strict, mde, verdict, note))
        rows += [
            (row, gap.ct_tokens, family, *_numbers(estimate), None, None, None, "", "")
            for family, estimate in (gap.families or {}).items()
        ]
    interval = ("value", "low", "high", "low_holm", "high_holm", "mde")
    return frame(("row", "tokens", "family", *interval, "verdict", "note"), rows)


def _decided(answers: Sequence[Answer]) -> Mapping[tuple[str, str, int], Answer]:
    """Return the answers about one gap of the mean accuracy, by its methods and budget."""
    alone = [(answer, answer.more["gaps"]) for answer in answers if len(answer.more.get("gaps", ())) == 1]
    return {
        (row["first"], row["second"], row["ct_tokens"]): answer
        for answer, (row,) in alone
        if row["gap"] and answer.estimate and answer.estimate.value == row["gap"]["value"]
    }


def _numbers(estimate: Estimate) -> list[float | None]:
    return [None if isinf(x) else round(x, DIGITS) for x in (estimate.value, estimate.low, estimate.high)]


def _bits(language: str) -> Spec:
    scale = {"zero": False, "nice": False, "reverse": True, "padding": 24}
    return number("bits", RIGHT_IS_BETTER.format(language), scale=scale, axis={"grid": True})


def frontiers(
    tables: Mapping[str, DataFrame], styles: Sequence[MethodStyle], language: str, width: int | None
) -> Chart:
    """Draw every knob value of every method at a budget: a line per method, seeds faint, pruned points hollow."""
    look = method_scales(styles, legend=width is not None)
    place = {"x": _bits(language), "y": number("accuracy", "mean accuracy", scale={"zero": False}, axis=LEFT)}
    data = {"name": "frontiers"}
    layers: list[Spec] = [
        {
            "data": {"name": "windows"},
            "mark": {"type": "rect", "color": SOFT, "opacity": 0.13, "tooltip": False},
            "encoding": {"x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
        },
        {
            "data": data,
            "transform": [{"filter": "datum.kind == 'kept'"}],
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
                "tooltip": tooltip(
                    "title: method", "knob", "bits: bits per byte: .3f", "accuracy: mean accuracy: .3f", "kind"
                ),
            },
        },
        {
            "data": data,
            "transform": [{"filter": "datum.kind != 'seed'"}],
            "mark": {"type": "text", "dy": -11, "fontSize": 10.5, "color": INK, "tooltip": False},
            "encoding": {**place, "text": {"field": "knob"}},
        },
    ]
    return Chart(
        name="frontiers",
        spec=sized({"layer": layers}, 330, width),
        tables={name: tables[name] for name in ("frontiers", "windows")},
        filters={"frontiers": BY_METHOD, "windows": BY_PAIR},
    )


def gap(tables: Mapping[str, DataFrame], language: str, width: int | None) -> Chart:
    """Draw the gap at single bits over the window with a 95% band, and its mean at the window's end of fewer bits."""
    across, up = _bits(language), number(None, "gap in accuracy", axis=LEFT)
    value: Spec = {"x": across, "y": {**up, "field": "value"}}
    value["tooltip"] = tooltip(
        "bits: bits per byte: .3f",
        "value: gap in accuracy: +.3f",
        "low: 95% CI from: +.3f",
        "high: 95% CI to: +.3f",
    )
    ends: Spec = {"x": across, "y": {**up, "field": "low"}, "y2": {"field": "high"}}
    diamond = {"type": "point", "filled": True, "shape": "diamond", "size": 110, "color": INK, "xOffset": 9}
    layers: list[Spec] = [
        *_margin("y"),
        {  # not seen: the axis is that of the frontiers above
            "data": {"name": "frontiers"},
            "mark": {"type": "point", "opacity": 0, "tooltip": False},
            "encoding": {"x": across, "y": {**up, "datum": 0}},
        },
        {
            "data": {"name": "gap"},
            "mark": {"type": "area", "opacity": 0.25, "color": PALETTE[0], "tooltip": False},
            "encoding": ends,
        },
        {
            "data": {"name": "gap"},
            "mark": {"type": "line", "strokeWidth": 2, "color": PALETTE[0], "point": False},
            "encoding": value,
        },
        {
            "data": {"name": "totals"},
            "mark": {"type": "rule", "strokeWidth": 2.4, "color": INK, "xOffset": 9},
            "encoding": ends,
        },
        {"data": {"name": "totals"}, "mark": diamond, "encoding": value},
    ]
    return Chart(
        name="gap",
        spec=sized({"layer": layers}, 190, width),
        tables={name: tables[name] for name in ("gap", "totals", "frontiers")},
        filters={"gap": BY_PAIR, "totals": BY_PAIR, "frontiers": BY_METHOD},
    )


def forest(table: DataFrame, width: int | None) -> Chart:
    """Draw the gap of every pair and budget: 95% CI thick, that of Holm thin, MDE as a tick, families in grey."""
    across = number(None, "gap in accuracy")
    below: Spec = {"field": "place", "type": "ordinal", "scale": {"domain": [-1, 0, 1, 2, 3]}}
    hover = tooltip("row", "family", "value", "low", "high", "mde", "verdict", "note")
    is_all: Spec = {"filter": "datum.family == 'all'"}

    def place(number: int) -> list[Spec]:
        return [is_all, {"calculate": str(number), "as": "place"}]

    def layer(transform: list[Spec], mark: Spec, *, hovered: bool = True, **encoding: Spec) -> Spec:
        seen = {**encoding, "yOffset": below, **({"tooltip": hover} if hovered else {})}
        return {"data": {"name": "forest"}, "transform": transform, "mark": mark, "encoding": seen}

    def rule(low: str, high: str, thick: float) -> Spec:
        mark = {"type": "rule", "strokeWidth": thick}
        return layer(place(0), mark, x={**across, "field": low}, x2={"field": high}, color=verdict_color())

    value = {**across, "field": "value"}
    point: Spec = {"type": "point", "filled": True}
    tick = {"type": "tick", "thickness": 1.6, "height": 9, "color": INK, "tooltip": False}
    text = {"type": "text", "align": "left", "fontSize": 11.5, "color": INK, "tooltip": False}
    layers: list[Spec] = [
        *_margin("x"),
        *([rule("low_holm", "high_holm", 1.0)] if table.low_holm.notna().any() else []),
        rule("low", "high", 3.2),
        layer(place(0), {**point, "size": 85, "opacity": 1}, x=value, color=verdict_color()),
        layer(place(0), tick, hovered=False, x={**across, "field": "mde"}),
        # inside the plot, as a telephone has no room beside it
        layer(place(-1), text, hovered=False, x={"value": 2}, text={"field": "row"}),
    ]
    if (table.family != "all").any():  # Vega warns of a layer without data
        families: list[Spec] = [
            {"filter": "datum.family != 'all'"},
            {"window": [{"op": "row_number", "as": "place"}], "groupby": ["row"]},
        ]
        grey: Spec = {"type": "rule", "strokeWidth": 1.6, "color": SOFT, "opacity": 0.7}
        layers += [
            layer(families, grey, x={**across, "field": "low"}, x2={"field": "high"}),
            layer(families, {**point, "size": 30, "color": SOFT, "opacity": 0.9}, x=value),
        ]
    row: Spec = {"field": "row", "type": "nominal", "sort": None, "title": None, "axis": None}
    height = 68 * max(1, table.row.nunique())
    return Chart(
        name="forest", spec=sized({"encoding": {"y": row}, "layer": layers}, height, width), tables={"forest": table}
    )


def _margin(channel: str) -> list[Spec]:
    """Return the strip within which a gap does not matter, and the line of no gap."""
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
