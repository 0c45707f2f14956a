"""Charts of scores: curves by CT budget, the trade-off with the language, predicted labels; and of the claims."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf

from pandas import DataFrame

from eval.task_set import BITS
from pipeline.report.charts.style import (
    BUDGET,
    INK,
    SOFT,
    Chart,
    MethodStyle,
    Spec,
    method_scales,
    number,
    sized,
    tokens_axis,
    tooltip,
    verdict_color,
)
from pipeline.report.claims import Answer
from pipeline.report.data import DIGITS, Measure, frame, measures, points
from pipeline.report.formatting import confidence
from pipeline.report.paired import Comparison

MOST_MARGINS = 10.0  # that a chart of effects shows
RIGHT_IS_BETTER = "bits per byte of {} text (right is better)"


def scores_table(scores: DataFrame, shown: Sequence[Measure]) -> DataFrame:
    """Return every measure of every method at every budget: means over seeds, with the range of single seeds as text.

    tokens is 0 for what no budget changes.
    """
    rows = []
    for measure in shown:
        for (method, tokens), point in points(scores, measure).iterrows():
            seeds = point.seeds
            spread = f"{min(seeds):.3f} to {max(seeds):.3f}" if len(seeds) > 1 else ""
            numbers = (round(value, DIGITS) for value in (point.value, point.low, point.high))
            rows.append((measure.id, method, tokens, *numbers, len(seeds), spread))
    return frame(("measure", "method", "tokens", "value", "low", "high", "seeds", "spread"), rows)


def levels_table(shown: Sequence[Measure]) -> DataFrame:
    """Return chance and the trivial baseline of each measure."""
    rows = [(measure.id, name, value) for measure in shown for name, value in measure.baselines.items()]
    return frame(("measure", "level", "value"), rows)


def curves(
    scores: DataFrame, levels: DataFrame, styles: Sequence[MethodStyle], budgets: Sequence[int], width: int | None
) -> Chart:
    """Draw a measure against CT tokens, with bands of 95% and levels that no budget changes."""
    look = method_scales(styles, legend=width is not None)
    across, up = tokens_axis(budgets), number("value", None, scale={"zero": False, "nice": True})
    curve: Spec = {"data": {"name": "scores"}, "transform": [{"filter": "datum.tokens > 0"}, BUDGET]}
    level: Spec = {"data": {"name": "scores"}, "transform": [{"filter": "datum.tokens == 0"}, BUDGET]}
    band: Spec = {"x": across, "y": number("low", None), "y2": {"field": "high"}}
    band["color"] = {**look["color"], "legend": None}
    right: Spec = {"align": "right", "baseline": "bottom", "dy": -3, "fontSize": 11}
    hover = tooltip(
        "title: method",
        "budget: CT tokens",
        "value: value: .3f",
        "low: 95% CI from: .3f",
        "high: 95% CI to: .3f",
        "seeds: seeds",
        "spread: range over seeds",
    )
    layers = [
        {
            "data": {"name": "levels"},
            "mark": {"type": "rule", "strokeDash": [1, 3], "strokeWidth": 1.4, "color": SOFT},
            "encoding": {"y": up, "tooltip": [{"field": "level"}, {"field": "value", "format": ".3f"}]},
        },
        {
            "data": {"name": "levels"},
            "mark": {"type": "text", **right, "color": SOFT},
            "encoding": {"x": {"value": "width"}, "y": up, "text": {"field": "level"}},
        },
        {
            **level,
            "mark": {"type": "rule", "strokeWidth": 1.6},
            "encoding": {"y": up, "color": look["color"], "strokeDash": look["strokeDash"], "tooltip": hover},
        },
        {
            **level,
            "mark": {"type": "text", **right, "align": "left", "color": SOFT},
            "encoding": {"x": {"value": 4}, "y": up, "text": {"field": "title"}},
        },
        {**curve, "mark": {"type": "area", "opacity": 0.1, "tooltip": False}, "encoding": band},
        {**curve, "mark": {"type": "rule", "opacity": 0.4, "tooltip": False}, "encoding": band},
        {
            **curve,
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {"x": across, "y": up, "color": look["color"], "strokeDash": look["strokeDash"]},
        },
        {
            **curve,
            "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
            "encoding": {"x": across, "y": up, "color": look["color"], "shape": look["shape"], "tooltip": hover},
        },
    ]
    return Chart(
        name="curves",
        spec=sized({"layer": layers}, 400, width),
        tables={"scores": scores, "levels": levels},
        filters={"scores": {"measure": "measure", "method": "methods"}, "levels": {"measure": "measure"}},
    )


def tradeoff_table(scores: DataFrame, target: str) -> DataFrame:
    """Return mean accuracy and bits per byte in the target language, of each method at each budget."""
    shown = measures(scores, target)
    accuracy = next((measure for measure in shown if measure.name == "mean accuracy"), None)
    bits = next((measure for measure in shown if measure.metric == BITS), None)
    rows = []
    if accuracy is not None and bits is not None:
        up = points(scores, accuracy).value
        for cell, value in points(scores, bits).value.items():
            if cell in up:
                rows.append((*cell, round(value, DIGITS), round(up[cell], DIGITS)))
    return frame(("method", "tokens", "bits", "accuracy"), rows)


def tradeoff(table: DataFrame, styles: Sequence[MethodStyle], language: str, width: int | None) -> Chart:
    """Draw bits per byte against mean accuracy: a line per method, from its smallest budget to its largest."""
    look = method_scales(styles, legend=width is not None)
    place: Spec = {
        "x": number(
            "bits", RIGHT_IS_BETTER.format(language), scale={"zero": False, "reverse": True}, axis={"grid": True}
        ),
        "y": number("accuracy", "mean accuracy (share of items)", scale={"zero": False}),
    }
    spec = {
        "data": {"name": "tradeoff"},
        "transform": [
            BUDGET,
            {"window": [{"op": "rank", "as": "rank"}], "sort": [{"field": "tokens"}], "groupby": ["method"]},
        ],
        "layer": [
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
                    "tooltip": tooltip(
                        "title: method", "budget: CT tokens", "bits: bits per byte: .3f", "accuracy: mean accuracy: .3f"
                    ),
                },
            },
            *method_names(place, width),
        ],
    }
    return Chart(
        name="tradeoff",
        spec=sized(spec, 380, width),
        tables={"tradeoff": table},
        filters={"tradeoff": {"method": "methods"}},
    )


def method_names(place: Spec, width: int | None) -> list[Spec]:
    """Return a layer with the name of each method at its largest budget, for a page; figures have a legend."""
    if width is not None:
        return []
    last = [
        {"joinaggregate": [{"op": "max", "field": "tokens", "as": "last"}], "groupby": ["method"]},
        {"filter": "datum.tokens == datum.last"},
    ]
    mark = {"type": "text", "align": "right", "dx": -7, "dy": -9, "color": INK, "fontSize": 11, "tooltip": False}
    text = {**place, "text": {"field": "title"}, "color": {"value": INK}}
    return [{"transform": last, "mark": mark, "encoding": text}]


def predictions_table(scores: DataFrame, target: str) -> DataFrame:
    """Return, for each task with a fixed set of labels, the fraction of answers per label, over all seeds."""
    rows = scores[
        (scores.language == target)
        & scores.predictions.notna()
        & (scores.primary.astype(bool) | (scores.metric == "acc"))
    ]
    tasks = rows.family.where(rows.primary.astype(bool), rows.family + ", raw")
    table = []
    for cell, seeds in rows.groupby([tasks.rename("task"), "method", "ct_tokens"], sort=False).predictions:
        counts: dict[str, float] = {}
        for given in seeds:
            for label, count in given.items():
                counts[label] = counts.get(label, 0) + count
        total = max(1.0, sum(counts.values()))
        table += [(*cell, label, round(count / total, DIGITS)) for label, count in counts.items()]
    return frame(("task", "method", "tokens", "label", "share"), table)


def predictions(table: DataFrame, styles: Sequence[MethodStyle], width: int | None) -> Chart:
    """Draw how often each label was the answer to one task at one budget: a group of bars per label."""
    spec = {
        "data": {"name": "predictions"},
        "transform": [BUDGET],
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "label", "type": "nominal", "title": None, "axis": {"labelAngle": -30}, "sort": None},
            "xOffset": {"field": "title", "type": "nominal", "sort": [style.title for style in styles]},
            "y": number("share", "share of answers", axis={"format": ".0%"}),
            "color": method_scales(styles, legend=width is not None)["color"],
            "tooltip": [
                *tooltip("title: method", "budget: CT tokens", "label"),
                {"field": "share", "format": ".1%"},
            ],
        },
    }
    return Chart(
        name="predictions",
        spec=sized(spec, 260, width),
        tables={"predictions": table},
        filters={"predictions": {"task": "task", "method": "methods", "tokens": "budget"}},
    )


def claims(answers: Sequence[Answer], width: int | None) -> Chart:
    """Draw the effect of each claim with its interval, in margins: within the band an effect does not matter.

    Claims are numbered as in the list of claims; effects are cut at MOST_MARGINS.
    """
    rows = []
    for place, answer in enumerate(answers, start=1):
        if (estimate := answer.estimate) is not None:
            ends = (x / answer.claim.margin for x in (estimate.value, estimate.low, estimate.high))
            cut = (round(max(-MOST_MARGINS, min(MOST_MARGINS, end)), 3) for end in ends)
            effect = confidence(estimate, answer.claim.unit)
            rows.append((f"{place}. {answer.verdict}", answer.claim.text, answer.verdict, *cut, effect))
    across = {"type": "quantitative", "title": "effect divided by margin"}
    across["scale"] = {"domain": [-MOST_MARGINS, MOST_MARGINS], "clamp": True}  # type: ignore[assignment]
    seen: Spec = {"color": verdict_color(), "tooltip": tooltip("text: claim", "verdict", "effect")}
    beyond = {  # of effects that the chart cuts
        "condition": [
            {"test": f"datum.value >= {MOST_MARGINS}", "value": "triangle-right"},
            {"test": f"datum.value <= -{MOST_MARGINS}", "value": "triangle-left"},
        ],
        "value": "circle",
    }
    axis = {"labelLimit": 120, "grid": False}
    spec = {
        "data": {"name": "claims"},
        "encoding": {"y": {"field": "row", "type": "nominal", "sort": None, "title": None, "axis": axis}},
        "layer": [
            {
                "transform": [{"calculate": "-1", "as": "from"}, {"calculate": "1", "as": "to"}],
                "mark": {"type": "bar", "opacity": 0.14, "color": SOFT, "height": {"band": 1}, "tooltip": False},
                "encoding": {"x": {**across, "field": "from"}, "x2": {"field": "to"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2.2},
                "encoding": {"x": {**across, "field": "low"}, "x2": {"field": "high"}, **seen},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {"x": {**across, "field": "value"}, "shape": beyond, **seen},
            },
        ],
    }
    table = frame(("row", "text", "verdict", "value", "low", "high", "effect"), rows)
    return Chart(name="claims", spec=sized(spec, 24 * max(1, len(rows)), width), tables={"claims": table})


def differences_table(comparisons: Sequence[Comparison]) -> DataFrame:
    """Return paired differences; what is infinite is None."""
    rows = []
    for c in comparisons:
        d = c.difference
        numbers = (None if isinf(x) else round(x, DIGITS) for x in (d.value, d.low, d.high, d.mde, c.p_adjusted))
        rows.append((c.kind, c.baseline, c.method, c.ct_tokens, *numbers, c.verdict))
    columns = ("kind", "baseline", "method", "tokens", "value", "low", "high", "mde", "p_adjusted", "verdict")
    return frame(columns, rows)
