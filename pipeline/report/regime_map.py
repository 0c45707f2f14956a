"""When merging wins, as a map: the merge that was best on dev minus CT-then-SFT, by regime and CT budget.

A regime is what else a sweep varies (conf/experiment/regimes.yaml): one report each, and this map of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import write_atomic
from common.units import format_tokens
from pipeline.report import builtin_claims, figures, merges
from pipeline.report.charts.style import SCHEMA, Spec, heat_map
from pipeline.report.data import csv_text, frame
from pipeline.report.formatting import interval, label
from pipeline.report.inference import Estimate
from pipeline.report.paired import Evidence, Kind
from pipeline.report.records import mean
from pipeline.report.sources import Sources

BASELINE = "ct_then_sft"
SHOWN: dict[Kind, str] = {"accuracy": "mean accuracy gained", "bits": "bits per byte saved"}
COLOURS = ("#b35806", "#f5f5f5", "#2166ac")  # CT-then-SFT is ahead, neither, the merge is ahead


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One regime at one CT budget; differences are the merge's minus CT-then-SFT's, positive where the merge is better.

    merge: the best on dev. norms: ‖τ_CT‖ / ‖τ_SFT‖. dev: difference in accuracy there, by which a regime may be chosen.
    gains: on the split that was scored.
    """

    language: str
    regime: str
    ct_tokens: int
    merge: str
    norms: float
    dev: float | None
    gains: Mapping[Kind, Estimate]

    def row(self) -> dict[str, str | int | float | None]:
        """Return a row of map.csv: with a column for each number of each gain."""
        fields = {name: value for name, value in vars(self).items() if name != "gains"}
        numbers = {
            column: value
            for kind, gain in self.gains.items()
            for column, value in ((kind, gain.value), (f"{kind}_low", gain.low), (f"{kind}_high", gain.high))
        }
        return {**fields, **numbers, "seeds": self.gains["accuracy"].seeds}


def spots(regime: str, sources: Sources) -> list[Spot]:
    """Return one regime in one language, by budget; budgets without a merge chosen on dev or CT-then-SFT are left
    out.
    """
    evidence = Evidence(sources.evaluations, sources.info.language)
    chosen = merges.read_choices(sources.choices)
    listed = []
    for budget in evidence.budgets:
        leader = builtin_claims.leader_at(budget, chosen, evidence)
        if leader is None or not evidence.has(BASELINE, budget):
            continue
        cells = [(leader, budget)], [(BASELINE, budget)]
        gains = {kind: gain for kind in SHOWN if (gain := builtin_claims.gain(evidence, kind, *cells)) is not None}
        here = [one for one in chosen if one.ct_tokens == budget and one.metric == "acc"]
        on_dev = {method: [one.at_budget for one in here if one.method == method] for method in (leader, BASELINE)}
        dev = mean(on_dev[leader]) - mean(on_dev[BASELINE]) if all(on_dev.values()) else None
        if gains.keys() == SHOWN.keys():
            norms = mean(merges.norm_ratios(sources.audits, leader, budget))
            listed.append(
                Spot(
                    language=sources.info.language_name,
                    regime=regime,
                    ct_tokens=budget,
                    merge=leader,
                    norms=norms,
                    dev=dev,
                    gains=gains,
                )
            )
    return listed


def write(regimes: Sequence[tuple[str, Sources]], folder: Path) -> list[str]:
    """Write map.csv, map.svg, .pdf and .png; the map as lines for a terminal. Nothing where no spot is known."""
    listed = [spot for regime, sources in regimes for spot in spots(regime, sources)]
    if not listed:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "map.csv", csv_text(frame(list(listed[0].row()), (spot.row() for spot in listed))))
    languages = dict.fromkeys(spot.language for spot in listed)
    panels = [
        (f"{language}: {title}", _panel([spot for spot in listed if spot.language == language], kind, number == 0))
        for number, (language, (kind, title)) in enumerate(
            (language, shown) for language in languages for shown in SHOWN.items()
        )
    ]
    picture = figures.write(figures.beside(panels), folder, "map")
    return [*(_line(spot) for spot in listed), str(picture)]


def _line(spot: Spot) -> str:
    where = f"{spot.language} {spot.regime} {format_tokens(spot.ct_tokens)}"
    numbers = ", ".join(f"{SHOWN[kind]} {interval(gain)}" for kind, gain in spot.gains.items())
    return f"{where}: {label(spot.merge)} against CT-then-SFT: {numbers}"


def _panel(listed: Sequence[Spot], kind: Kind, labelled: bool) -> Spec:
    """Return a heat map of one kind in one language, one row per regime and one column per budget."""
    rows = [
        {
            "regime": spot.regime,
            "budget": format_tokens(spot.ct_tokens),
            "gain": spot.gains[kind].value,
            "text": f"{spot.gains[kind].value:+.3f}",
        }
        for spot in listed
    ]
    most = max(abs(spot.gains[kind].value) for spot in listed) or 1.0
    regimes, budgets = (list(dict.fromkeys(row[name] for row in rows)) for name in ("regime", "budget"))
    return {
        "$schema": SCHEMA,
        "width": 64 * len(budgets),
        "height": 26 * len(regimes),
        "data": {"name": "spots"},
        "datasets": {"spots": rows},
        **heat_map(
            x={"field": "budget", "sort": budgets},
            y={"field": "regime", "sort": regimes},
            color={
                "field": "gain",
                "type": "quantitative",
                "scale": {"domain": [-most, 0, most], "range": list(COLOURS)},
                "legend": None,
            },
            text={"field": "text", "type": "nominal"},
            dark=f"abs(datum.gain) > {0.6 * most}",
            row_labels=260 if labelled else None,
        ),
        "resolve": {"scale": {"color": "independent"}},
    }
