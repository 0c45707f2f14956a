"""Charts of what merges discarded of SFT, and of slack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isinf
from typing import Any

from pandas import DataFrame

from common.units import format_tokens
from pipeline.report.charts.style import BUDGET, SEQUENTIAL, Chart, Spec, heat_map, number, sized, tooltip
from pipeline.report.data import DIGITS, frame
from pipeline.report.merges import TOP, Discarded

QUANTITIES = {  # of SFT's parameters, by their column
    "lost": "lost in sign conflict, of all",
    "lost_top": f"lost in sign conflict, of the top {TOP}",
    "trimmed": "trimmed or dropped, of all",
}


def parts_table(discarded: Sequence[Discarded]) -> DataFrame:
    """Return what each merge discarded of SFT: of the whole model, of each layer and of each kind of module."""
    rows = []
    for merge in discarded:
        for (by, part), shares in {("whole", "whole model"): merge.whole, **merge.parts}.items():
            name = part if by != "layer" or part == "outside" else f"layer {part}"
            values = (round(getattr(shares, quantity), DIGITS) for quantity in QUANTITIES)
            rows.append((merge.method, merge.ct_tokens, by, name, *values))
    return frame(("method", "tokens", "by", "part", *QUANTITIES), rows)


def heat(table: DataFrame, width: int | None) -> Chart:
    """Draw the share that one merge discarded: a row per part of the model, a column per budget."""
    parts = list(table.part.unique())
    spec = {
        "data": {"name": "parts"},
        "params": [{"name": "quantity", "value": "lost_top"}],
        "transform": [
            {"calculate": "datum[quantity]", "as": "share"},
            BUDGET,
            {"joinaggregate": [{"op": "max", "field": "share", "as": "most"}]},
        ],
        **heat_map(
            x={"field": "budget", "sort": {"field": "tokens"}, "title": "CT tokens"},
            y={"field": "part", "sort": parts},
            color={
                "field": "share",
                "type": "quantitative",
                "scale": {"range": list(SEQUENTIAL), "domainMin": 0},
                "legend": {"title": "share of SFT's parameters", "format": ".0%", "orient": "bottom"},
            },
            text={"field": "share", "format": ".1%"},
            dark="datum.share > datum.most * .45",
            row_labels=130,
            hover=[
                *tooltip("part", "budget: CT tokens"),
                {"field": "share", "format": ".2%"},
                *tooltip(
                    "lost: lost, of all: .2%", "lost_top: lost, of the top 5%: .2%", "trimmed: trimmed or dropped: .2%"
                ),
            ],
        ),
    }
    return Chart(
        name="heat",
        spec=sized(spec, 24 * max(1, len(parts)), width),
        tables={"parts": table},
        filters={"parts": {"method": "merge"}},
        params={"quantity": "quantity"},
    )


def slack_table(tradeoff: DataFrame, discarded: Sequence[Discarded]) -> DataFrame:
    """Return merges whose recipes differ in the slack alone, for every seed: their scores and what they lost, by slack.

    tradeoff: accuracy and bits per byte (charts/scores.py). group: the settings that they share, and the variant of
    slack; TIES without slack is in the group of each variant. Groups with a single slack are left out.
    """
    plain: dict[str, list[Discarded]] = {}
    slacked: dict[tuple[str, str], list[Discarded]] = {}
    for merge in discarded:
        texts = {
            (json.dumps(shared, sort_keys=True), json.dumps(merge.slack_variant[seed], sort_keys=True))
            for seed, shared in merge.settings_except_slack.items()
        }
        if len(texts) == 1:  # else its seeds were tuned apart
            shared, variant = texts.pop()
            if merge.is_plain_ties:
                plain.setdefault(shared, []).append(merge)
            elif merge.has_slack_for_sft:
                slacked.setdefault((shared, variant), []).append(merge)
    scored = tradeoff.set_index(["method", "tokens"]).to_dict("index")
    rows = []
    for (shared, variant), protecting in slacked.items():
        group = [*plain.get(shared, []), *protecting]
        if len({merge.slack for merge in group}) < 2:
            continue
        settings = _distinguishing(json.loads(shared)) | json.loads(variant)
        name = ", ".join(f"{key} {value}" for key, value in settings.items())
        for merge in group:
            score = scored.get((merge.method, merge.ct_tokens), {})
            slack, order = ("\u221e", 1e9) if isinf(merge.slack) else (f"{merge.slack:g}", merge.slack)
            lost = round(merge.whole.lost_top, DIGITS)
            numbers = (order, score.get("accuracy"), score.get("bits"), lost)
            rows.append((name, merge.method, merge.ct_tokens, slack, *numbers))
    return frame(("group", "method", "tokens", "slack", "order", "accuracy", "bits", "lost_top"), rows)


def _distinguishing(shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return what distinguishes groups of merges: density (one, or by model), and lambda or the given norm."""
    densities = {name: model["density"] for name, model in shared["models"].items() if "density" in model}
    same = len(set(map(str, densities.values()))) == 1
    density = {"density": next(iter(densities.values()))} if same else {f"density {k}": v for k, v in densities.items()}
    return density | ({"norm": shared["norm"]} if shared.get("norm") else {"lambda": shared["lambda"]})


def slack(table: DataFrame, budgets: Sequence[int], width: int | None) -> Chart:
    """Draw one measure against slack, a line per budget, of merges that differ in slack alone."""
    order = [format_tokens(budget) for budget in budgets]
    by_budget: Spec = {"field": "budget", "type": "ordinal", "sort": order}
    slacks = {row.order: row.slack for row in table.itertuples()}
    spec = {
        "data": {"name": "slack"},
        "params": [{"name": "measured", "value": "accuracy"}],
        "transform": [{"calculate": "datum[measured]", "as": "value"}, BUDGET],
        "mark": {"type": "line", "point": {"filled": True, "size": 70}, "strokeWidth": 2},
        "encoding": {
            "x": {
                "field": "slack",
                "type": "ordinal",
                "sort": [slacks[place] for place in sorted(slacks)],
                "title": "slack \u03be (0: TIES)",
                "axis": {"labelAngle": 0},
                "scale": {"padding": 0.3},
            },
            "y": number("value", None, scale={"zero": False}),
            "color": {
                **by_budget,
                "scale": {"domain": order, "range": list(SEQUENTIAL[1:]) if len(order) > 1 else [SEQUENTIAL[3]]},
                "legend": {"title": "CT tokens", "orient": "bottom"},
            },
            "strokeDash": {**by_budget, "legend": None},
            "detail": {"field": "group"},
            "tooltip": tooltip(
                "title: method",
                "group: settings",
                "budget: CT tokens",
                "accuracy: mean accuracy: .3f",
                "bits: bits per byte: .3f",
                "lost_top: lost of the top 5%: .1%",
            ),
        },
    }
    return Chart(
        name="slack",
        spec=sized(spec, 280, width),
        tables={"slack": table},
        filters={"slack": {"group": "group"}},
        params={"measured": "measured"},
    )
