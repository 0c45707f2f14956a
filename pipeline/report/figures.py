"""Charts as files for papers, and Vega's JavaScript for the page: both from vl-convert, without a browser."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from common.files import write_atomic
from pipeline.report.charts.style import INK, PAPER_COLOURS, SOFT, Chart, MethodStyle, Spec, colored, theme

SCALE = 2.0  # pixels of the PNG for each of the figure
PAPER = {**theme(PAPER_COLOURS[INK], PAPER_COLOURS[SOFT], "#e3e3e3"), "background": "#ffffff"}


@cache
def javascript() -> str:
    """Return Vega, Vega-Lite and Vega-Embed of the version that draws the figures: gzip in base64, for a page."""
    import vl_convert

    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its types ask for what it does not need
    return base64.b64encode(gzip.compress(bundle.encode(), mtime=0)).decode()


def selected(chart: Chart, choice: Mapping[str, Any], styles: Mapping[str, MethodStyle]) -> Spec:
    """Return a chart's spec with the data that a choice of the reader leaves, as the page's script selects them."""
    datasets = {}
    for name, table in chart.tables.items():
        kept = table
        for column, key in chart.filters.get(name, {}).items():
            wanted = choice.get(key)
            of_budget = (kept[column] == 0) if column == "tokens" else False  # what no budget changes is always shown
            kept = kept[kept[column].isin(wanted if isinstance(wanted, list) else [wanted]) | of_budget]
        datasets[name] = [
            {**row, **({"title": styles[row["method"]].title} if row.get("method") in styles else {})}
            for row in kept.to_dict("records")
        ]
    params = [{"name": name, "value": choice[key]} for name, key in chart.params.items()]
    return {**chart.spec, "datasets": datasets, **({"params": params} if params else {})}


def write(spec: Spec, folder: Path, name: str) -> Path:
    """Write `<name>.svg`, `.pdf` and `.png`; return the PNG's path. The same data give the same SVG and PNG."""
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    painted = colored(spec, PAPER_COLOURS)
    svg = _numbered(vl_convert.vegalite_to_svg(painted, config=PAPER, allowed_base_urls=[]))
    made = {"svg": svg.encode(), "pdf": vl_convert.svg_to_pdf(svg), "png": vl_convert.svg_to_png(svg, scale=SCALE)}
    for kind, content in made.items():
        write_atomic(folder / f"{name}.{kind}", content)
    return folder / f"{name}.png"


def _numbered(svg: str) -> str:
    """Return an SVG whose gradients and clips are numbered from 0: Vega counts on from one picture to the next."""
    numbers: dict[str, str] = {}
    return re.sub(
        r"\b(gradient_|clip)\d+\b", lambda match: numbers.setdefault(match[0], f"{match[1]}{len(numbers)}"), svg
    )


def beside(specs: Sequence[tuple[str, Spec]], how: str = "hconcat") -> Spec:
    """Join charts under titles into one figure, side by side or below each other (vconcat). Each keeps its data."""
    placed: list[Spec] = []
    datasets: Spec = {}
    for number, (title, spec) in enumerate(specs):
        names = {name: f"{name}_{number}" for name in spec["datasets"]}
        datasets |= {names[name]: rows for name, rows in spec["datasets"].items()}
        inner = {key: value for key, value in spec.items() if key not in ("datasets", "$schema", "autosize")}
        placed.append({**_renamed(inner, names), "title": title})
    return {how: placed, "datasets": datasets, "spacing": 36}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return a spec that reads its data under other names."""
    if isinstance(value, dict):
        if isinstance(value.get("data"), dict) and "name" in value["data"]:
            value = {**value, "data": {"name": names[value["data"]["name"]]}}
            return {key: each if key == "data" else _renamed(each, names) for key, each in value.items()}
        return {key: _renamed(each, names) for key, each in value.items()}
    return [_renamed(each, names) for each in value] if isinstance(value, list) else value
