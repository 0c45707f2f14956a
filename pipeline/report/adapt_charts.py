"""The map of all tries on dev: what each gained against what it kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.adapt_measures import Measure
from pipeline.report.adapt_records import CHAT, Choice
from pipeline.report.chart_data import DIGITS, Table
from pipeline.report.looks import INK, PALETTE, SHAPES, SOFT
from pipeline.report.records import label
from pipeline.report.vega import Chart, sized

MAP = "tries"
CHAT_TITLE = "chat model"
COLUMNS = ("title", "settings", "keep", "gain", "status", "label")


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The tries as the map draws them; rows: those of adapt_tables.dev_rows."""

    def status(row: Mapping[str, Any]) -> str:
        return "chosen" if row["chosen"] else "within the tolerance" if row["kept"] else "loses too much"

    marks = ((CHAT_TITLE, lambda row: row["candidate"] == CHAT), ("chosen", lambda row: row["chosen"]))
    return Table(
        COLUMNS,
        [
            (
                CHAT_TITLE if row["candidate"] == CHAT else label(str(row["method"])),
                row["name"],
                round(row["keep"], DIGITS),
                round(row["gain"], DIGITS),
                status(row),
                ", ".join(words for words, holds in marks if holds(row)),
            )
            for row in rows
        ],
    )


def floor(rows: Sequence[Mapping[str, Any]], choice: Choice, keep: Measure) -> Table:
    """The value of `keep` that a try must reach: the chat model's, less the tolerance."""
    chat = next(float(row["keep"]) for row in rows if row["candidate"] == CHAT)
    edge = chat + choice.tolerance if keep.lower_is_better else chat - choice.tolerance
    return Table(("keep", "level"), [(round(edge, DIGITS), "tolerance")])


def tries_map(titles: Sequence[str], gain: Measure, keep: Measure, width: int | None = None) -> Chart:
    """The map. titles: of methods, the chat model among them, in their order. Better is up, and right of the line."""
    place: dict[str, Any] = {
        "x": _axis("keep", keep, "kept"),
        "y": _axis("gain", gain, "gained"),
    }
    domain = list(titles)
    colours = [INK if title == CHAT_TITLE else PALETTE[number % len(PALETTE)] for number, title in enumerate(domain)]
    shapes = ["diamond" if title == CHAT_TITLE else SHAPES[number % 4] for number, title in enumerate(domain)]
    guide: dict[str, Any] = {"title": None, "orient": "bottom", "columns": 2, "symbolLimit": 0}
    scales: dict[str, Any] = {
        "color": {"field": "title", "type": "nominal", "scale": {"domain": domain, "range": colours}, "legend": guide},
        "shape": {"field": "title", "type": "nominal", "scale": {"domain": domain, "range": shapes}, "legend": guide},
    }
    hover = [
        {"field": "settings", "title": "candidate"},
        {"field": "gain", "title": gain.title, "format": ".3f"},
        {"field": "keep", "title": keep.title, "format": ".3f"},
        {"field": "status"},
    ]
    tries: dict[str, Any] = {"data": {"name": MAP}}
    layers: list[dict[str, Any]] = [
        {
            "data": {"name": "floor"},
            "mark": {"type": "rule", "color": SOFT, "strokeDash": [5, 4]},
            "encoding": {"x": place["x"]},
        },
        {
            "data": {"name": "floor"},
            "mark": {
                "type": "text",
                "align": "left",
                "dx": 4,
                "baseline": "bottom",
                "color": SOFT,
                "y": "height",
                "dy": -4,
            },
            "encoding": {"x": place["x"], "text": {"field": "level"}},
        },
        {
            **tries,
            "transform": [{"filter": "datum.status === 'chosen'"}],
            "mark": {"type": "point", "size": 420, "strokeWidth": 2, "color": INK},
            "encoding": place,
        },
        {
            **tries,
            "mark": {"type": "point", "filled": True, "size": 85},
            "encoding": {
                **place,
                **scales,
                "opacity": {"condition": {"test": "datum.status === 'loses too much'", "value": 0.4}, "value": 1},
                "tooltip": hover,
            },
        },
        {
            **tries,
            "transform": [{"filter": "datum.label !== ''"}],
            "mark": {"type": "text", "dy": -18, "color": INK, "fontWeight": 600},
            "encoding": {**place, "text": {"field": "label"}},
        },
    ]
    return Chart(MAP, sized({"layer": layers}, 360, width))


def described(rows: Sequence[Mapping[str, Any]], gain: Measure, keep: Measure) -> str:
    """The map in words, for a screen reader."""
    said = [
        f"{row['name']}: {row['gain']:.3f} and {row['keep']:.3f}{', chosen' if row['chosen'] else ''}" for row in rows
    ]
    return f"Points of {gain.title} against {keep.title} on dev, one per try. {'; '.join(said)}."


def _axis(name: str, measure: Measure, what: str) -> dict[str, Any]:
    lower = ", lower is better" if measure.lower_is_better else ""
    few = {"axis": {"tickCount": 6}}
    scale = {"zero": False, "padding": 40, **({"reverse": True} if measure.lower_is_better else {})}
    title = f"{what}: {measure.title} on dev{lower}"
    return {"field": name, "type": "quantitative", "title": title, "scale": scale, **few}
