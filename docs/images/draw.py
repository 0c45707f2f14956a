"""Draw the pictures of the documentation: `.venv/bin/python docs/images/draw.py`.

curves.png: accuracy and bits per byte by CT budget, from the data inside docs/evidence/report.html, by the charts and
the figure export of the report. frontier.png: its frontiers at the largest budget; control.png: those of
docs/evidence/control. slack.png: which side of a sign conflict survives, with slack and without.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pandas import DataFrame

from pipeline.report import figures
from pipeline.report.charts import frontiers
from pipeline.report.charts.scores import curves as curves_chart
from pipeline.report.charts.style import INK, SCHEMA, SOFT, MethodStyle, Spec
from pipeline.report.data import frame

HERE = Path(__file__).parent
PAGE = HERE.parent / "evidence" / "report.html"
SHOWN = {  # methods of the picture, under the names that README and docs give them
    "ct": "CT",
    "ct_then_sft": "CT-then-SFT",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "ties_sv_1": "TIES + slack 1",
}
PANELS = {  # titles of the two panels, by the measure that each shows
    "nya/mean_nya/acc": "Accuracy (higher is better)",
    "nya/bits_per_byte_nya/bits_per_byte": "Bits per byte of Chichewa text (lower is better)",
}
WIDTH = 400


def page_data(page: Path = PAGE) -> dict[str, Any]:
    """Return what the script of a report page reads: its tables, charts and styles."""
    text = page.read_text(encoding="utf-8")
    start = text.index(">", text.index('<script type="application/json" id="data">')) + 1
    data: dict[str, Any] = json.loads(text[start : text.index("</script>", start)])
    return data


def unpacked(packed: dict[str, Any]) -> DataFrame:
    """Return a table of a page, whose texts are numbers into lists of values."""
    columns = packed["columns"]
    rows = (
        [c["values"][v] if "values" in c else v for c, v in zip(columns, row, strict=True)] for row in packed["rows"]
    )
    return frame([c["name"] for c in columns], rows)


def styles_of(data: dict[str, Any]) -> dict[str, MethodStyle]:
    """Return how the shown methods look, with solid lines."""
    styles = data["styles"] if "styles" in data else data["looks"]  # the name in pages before 0.2
    return {
        style["method"]: MethodStyle(
            **{**style, "title": SHOWN[style["method"]], "color": _color(style["color"]), "dash": (1, 0)}
        )
        for style in styles
        if style["method"] in SHOWN
    }


def frontier(data: dict[str, Any], language: str = "Chichewa") -> Spec:
    """Return the frontiers at the largest budget: a line per method over its knob values, without single seeds."""
    table = unpacked(data["tables"]["frontiers"])
    table, styles = table[table.kind != "seed"], styles_of(data)
    methods = [method for method in SHOWN if method in set(table.method)]
    tables = {"frontiers": table, "windows": frame(("pair", "tokens", "low", "high"), [])}
    chart = frontiers.frontiers(tables, [styles[method] for method in methods], language, 560)
    choice = {"methods": methods, "frontier_budget": max(table.tokens), "pair": None}
    return figures.selected(chart, choice, styles)


def curves(data: dict[str, Any]) -> Spec:
    """Return the data-efficiency curves: accuracy and bits per byte side by side."""
    scores, styles = unpacked(data["tables"]["scores"]), styles_of(data)
    budgets = sorted(tokens for tokens in scores.tokens.unique() if tokens)
    chart = curves_chart(scores, frame(("measure", "level", "value"), []), list(styles.values()), budgets, WIDTH)
    panels = []
    for measure, title in PANELS.items():
        choice = {"measure": measure, "methods": list(SHOWN)}
        panels.append((title, figures.selected(chart, choice, styles)))
    return figures.beside(panels)


def _color(color: str) -> str:
    return {"var(--ink)": INK, "var(--soft)": SOFT}.get(color, color)


def slack(value: float = 1.0) -> Spec:
    """Return the plane of one conflicting parameter: |change by CT| across, |change by SFT| up, and who survives."""
    x: Spec = {"field": "x", "type": "quantitative", "title": "size of CT's change, |τ_CT|"}
    y: Spec = {"field": "low", "type": "quantitative", "title": "size of SFT's change, |τ_SFT|"}
    bare: Spec = {"axis": {"labels": False, "ticks": False, "grid": False}, "scale": {"domain": [0, 1]}}

    def region(lower: str, upper: str, color: str, opacity: float) -> Spec:
        return {
            "transform": [{"calculate": lower, "as": "low"}, {"calculate": upper, "as": "high"}],
            "mark": {"type": "area", "color": color, "opacity": opacity, "clip": True},
            "encoding": {"x": {**x, **bare}, "y": {**y, **bare}, "y2": {"field": "high"}},
        }

    def text(at: float, up: float, words: str) -> Spec:
        return {
            "data": {"values": [{"x": at, "low": up}]},
            "mark": {"type": "text", "fontSize": 14, "text": words.split("|"), "color": INK},
            "encoding": {"x": {**x, **bare}, "y": {**y, **bare}},
        }

    turned = f"datum.x / {1 + value}"
    return {
        "$schema": SCHEMA,
        "width": 440,
        "height": 340,
        "data": {"values": [{"x": step / 50} for step in range(51)]},
        "layer": [
            region("datum.x", "1", "#0072B2", 0.35),
            region(turned, "datum.x", "#0072B2", 0.7),
            region("0", turned, "#E69F00", 0.45),
            text(0.3, 0.72, "SFT survives|with and without slack"),
            text(0.74, 0.53, f"slack {value:g}|returns these|to SFT"),
            text(0.72, 0.14, "CT survives"),
        ],
    }


def main() -> None:
    """Draw the pictures into this folder."""
    with tempfile.TemporaryDirectory() as folder:
        data = page_data()
        control = frontier(page_data(PAGE.parent / "control" / PAGE.name), "cipher")
        pictures = {"curves": curves(data), "frontier": frontier(data), "control": control, "slack": slack()}
        for name, spec in pictures.items():
            shutil.copy(figures.write(spec, Path(folder), name), HERE / f"{name}.png")


if __name__ == "__main__":
    main()
