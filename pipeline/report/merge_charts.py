"""Charts of discarded parameters, of slack, of trainings and of computing time."""

from __future__ import annotations

from collections.abc import Sequence

from common.units import format_tokens
from pipeline.report.chart_data import SAVED, SPENT
from pipeline.report.vega import BUDGET, SEQUENTIAL, Chart, Spec, heat_map, sized

HOURS = ("#0072B2", "#b8c4d0")


def heat(parts: Sequence[str], width: int | None = None) -> Chart:
    """The share that one merge discarded: a row per part of the model, a column per budget. parts: top to bottom."""
    spec = {
        "data": {"name": "parts"},
        "params": [{"name": "quantity", "value": "lost_top"}],
        "transform": [
            {"calculate": "datum[quantity]", "as": "share"},
            {"calculate": BUDGET, "as": "budget"},
            {"joinaggregate": [{"op": "max", "field": "share", "as": "most"}]},
        ],
        **heat_map(
            x={"field": "budget", "sort": {"field": "tokens"}, "title": "CT tokens"},
            y={"field": "part", "sort": list(parts)},
            color={
                "field": "share",
                "type": "quantitative",
                "scale": {"range": list(SEQUENTIAL), "domainMin": 0},
                "legend": {"title": "share of SFT's parameters", "format": ".0%", "orient": "bottom"},
            },
            text={"field": "share", "format": ".1%"},
            dark="datum.share > datum.most * .45",
            row_labels=130,
            tooltip=[
                {"field": "part"},
                {"field": "budget", "title": "CT tokens"},
                {"field": "share", "format": ".2%"},
                {"field": "lost", "title": "lost, of all", "format": ".2%"},
                {"field": "lost_top", "title": "lost, of the top 5%", "format": ".2%"},
                {"field": "trimmed", "title": "trimmed or dropped", "format": ".2%"},
            ],
        ),
    }
    by_choice = {"parts": {"method": "merge"}}
    return Chart("heat", sized(spec, 24 * max(1, len(parts)), width), by_choice, {"quantity": "quantity"})


def slack(slacks: Sequence[str], budgets: Sequence[int], width: int | None = None) -> Chart:
    """One measure against slack, a line per budget, of merges that differ in slack alone."""
    order = [format_tokens(budget) for budget in budgets]
    spec = {
        "data": {"name": "slack"},
        "params": [{"name": "measured", "value": "accuracy"}],
        "transform": [{"calculate": "datum[measured]", "as": "value"}, {"calculate": BUDGET, "as": "budget"}],
        "mark": {"type": "line", "point": {"filled": True, "size": 70}, "strokeWidth": 2},
        "encoding": {
            "x": {
                "field": "slack",
                "type": "ordinal",
                "sort": list(slacks),
                "title": "slack \u03be (0: TIES)",
                "axis": {"labelAngle": 0},
                "scale": {"padding": 0.3},
            },
            "y": {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}},
            "color": {
                "field": "budget",
                "type": "ordinal",
                "sort": order,
                "scale": {"domain": order, "range": list(SEQUENTIAL[1:]) if len(order) > 1 else [SEQUENTIAL[3]]},
                "legend": {"title": "CT tokens", "orient": "bottom"},
            },
            "strokeDash": {"field": "budget", "type": "ordinal", "sort": order, "legend": None},
            "detail": {"field": "group"},
            "tooltip": [
                {"field": "title", "title": "method"},
                {"field": "group", "title": "settings"},
                {"field": "budget", "title": "CT tokens"},
                {"field": "accuracy", "title": "mean accuracy", "format": ".3f"},
                {"field": "bits", "title": "bits per byte", "format": ".3f"},
                {"field": "lost_top", "title": "lost of the top 5%", "format": ".1%"},
            ],
        },
    }
    return Chart("slack", sized(spec, 280, width), {"slack": {"group": "group"}}, {"measured": "measured"})


def training(languages: Sequence[str], width: int | None = None) -> Chart:
    """Bits per byte on dev against the tokens of a training: a line per stage, a colour and dash per language."""
    by_language: Spec = {"field": "language", "type": "nominal", "sort": list(languages)}
    spec = {
        "data": {"name": "training"},
        "mark": {"type": "line", "strokeWidth": 1.5, "point": {"size": 18}},
        "encoding": {
            "x": {"field": "tokens", "type": "quantitative", "title": "tokens of this training"},
            "y": {"field": "bits", "type": "quantitative", "title": "bits per byte on dev", "scale": {"zero": False}},
            "color": {
                **by_language,
                "scale": {"domain": list(languages), "range": list(HOURS)},
                "legend": {"title": None, "orient": "bottom"},
            },
            "strokeDash": {**by_language, "legend": None},
            "detail": {"field": "stage"},
            "tooltip": [
                {"field": "stage"},
                {"field": "language"},
                {"field": "tokens", "format": ","},
                {"field": "bits", "title": "bits per byte", "format": ".3f"},
            ],
        },
    }
    return Chart("training", sized(spec, 240, width))


def hours(kinds: int, width: int | None = None) -> Chart:
    """Hours by kind of stage, spent and saved. kinds: how many."""
    spec = {
        "data": {"name": "hours"},
        "mark": {"type": "bar"},
        "encoding": {
            "y": {"field": "kind", "type": "nominal", "title": None, "sort": None},
            "x": {"field": "hours", "type": "quantitative", "title": "hours"},
            "color": {
                "field": "what",
                "type": "nominal",
                "scale": {"domain": [SPENT, SAVED], "range": list(HOURS)},
                "legend": {"title": None, "orient": "bottom"},
            },
            "order": {"field": "what", "sort": "descending"},
            "tooltip": [{"field": "kind"}, {"field": "stages"}, {"field": "what"}, {"field": "hours", "format": ".3f"}],
        },
    }
    return Chart("hours", sized(spec, 24 * max(1, kinds), width))
