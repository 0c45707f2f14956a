"""Charts of stage records: the price of a method, training curves, computing time."""

from __future__ import annotations

from collections.abc import Sequence

from pandas import DataFrame

from pipeline.report.charts.scores import method_names
from pipeline.report.charts.style import BUDGET, Chart, MethodStyle, Spec, method_scales, number, sized, tooltip
from pipeline.report.stages import SAVED, SPENT

TWO = ("#0072B2", "#b8c4d0")  # colours of two parts
LEGEND: Spec = {"title": None, "orient": "bottom"}


def price(table: DataFrame, styles: Sequence[MethodStyle], width: int | None) -> Chart:
    """Draw what a model costs against its score: a line per method, from its smallest CT budget to its largest."""
    look = method_scales(styles, legend=width is not None)
    place: Spec = {
        "x": number("paid", None, axis={"grid": True, "format": "~s"}),
        "y": number("value", None, scale={"zero": False}),
        "color": look["color"],
    }
    hover = tooltip(
        "title: method",
        "budget: CT tokens",
        "paid: cost: ,.4~g",
        "accuracy: mean accuracy: .3f",
        "bits: bits per byte: .3f",
    )
    spec = {
        "data": {"name": "price"},
        "params": [{"name": "cost", "value": "time"}, {"name": "scored", "value": "accuracy"}],
        "transform": [
            {"calculate": "datum[cost]", "as": "paid"},
            {"calculate": "datum[scored]", "as": "value"},
            BUDGET,
        ],
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 1.8},
                "encoding": {**place, "order": {"field": "tokens"}, "strokeDash": look["strokeDash"]},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {**place, "shape": look["shape"], "tooltip": hover},
            },
            *method_names(place, width),
        ],
    }
    return Chart(
        name="price",
        spec=sized(spec, 320, width),
        tables={"price": table},
        filters={"price": {"method": "methods"}},
        params={"cost": "cost", "scored": "scored"},
    )


def training(table: DataFrame, width: int | None) -> Chart:
    """Draw bits per byte on dev against the tokens of a training: a line per stage, a colour and dash per language."""
    languages = list(table.language.unique())
    by_language: Spec = {"field": "language", "type": "nominal", "sort": languages}
    spec = {
        "data": {"name": "training"},
        "mark": {"type": "line", "strokeWidth": 1.5, "point": {"size": 18}},
        "encoding": {
            "x": number("tokens", "tokens of this training"),
            "y": number("bits", "bits per byte on dev", scale={"zero": False}),
            "color": {**by_language, "scale": {"domain": languages, "range": list(TWO)}, "legend": LEGEND},
            "strokeDash": {**by_language, "legend": None},
            "detail": {"field": "stage"},
            "tooltip": [
                *tooltip("stage", "language"),
                {"field": "tokens", "format": ","},
                *tooltip("bits: bits per byte: .3f"),
            ],
        },
    }
    return Chart(name="training", spec=sized(spec, 240, width), tables={"training": table})


def hours(table: DataFrame, width: int | None) -> Chart:
    """Draw hours by kind of stage, spent and saved."""
    spec = {
        "data": {"name": "hours"},
        "mark": {"type": "bar"},
        "encoding": {
            "y": {"field": "kind", "type": "nominal", "title": None, "sort": None},
            "x": number("hours", "hours"),
            "color": {
                "field": "what",
                "type": "nominal",
                "scale": {"domain": [SPENT, SAVED], "range": list(TWO)},
                "legend": LEGEND,
            },
            "order": {"field": "what", "sort": "descending"},
            "tooltip": [*tooltip("kind", "stages", "what"), {"field": "hours", "format": ".3f"}],
        },
    }
    return Chart(name="hours", spec=sized(spec, 24 * max(1, table.kind.nunique()), width), tables={"hours": table})
