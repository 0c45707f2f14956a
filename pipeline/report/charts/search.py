"""Chart of searches for the settings of merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from pandas import DataFrame

from eval.task_set import BITS
from pipeline.report.charts.style import Chart, MethodStyle, Spec, method_scales, number, sized, tooltip
from pipeline.report.data import DIGITS, frame
from pipeline.report.formatting import budget_name, settings_text
from pipeline.report.merges import Selected


def search_table(selected: Sequence[Selected]) -> DataFrame:
    """Return each trial of each search with its score on dev and the best score so far. group: the run, in words."""
    rows = []
    for one in selected:
        if one.sampler:
            scores = [score for _, score in one.scored]
            best = accumulate(scores, min if one.metric == BITS else max)
            group = f"{budget_name(one.ct_tokens)} tokens, seed {one.seed}"
            for trial, ((settings, score), so_far) in enumerate(zip(one.scored, best, strict=True), start=1):
                numbers = (round(score, DIGITS), round(so_far, DIGITS))
                rows.append((group, one.method, one.ct_tokens, one.seed, trial, settings_text(settings), *numbers))
    return frame(("group", "method", "tokens", "seed", "trial", "settings", "score", "best"), rows)


def search(table: DataFrame, metric: str, styles: Mapping[str, MethodStyle], width: int | None) -> Chart:
    """Draw the score on dev of each trial as a point, and the best so far as a line, for each method of one run."""
    look = method_scales([styles[method] for method in dict.fromkeys(table.method) if method in styles], legend=True)
    scale = {"domain": [0.5, 0.5 + (1 if table.empty else int(table.trial.max()))], "nice": False}
    trial = number("trial", "candidate", axis={"tickMinStep": 1, "format": "d", "grid": False}, scale=scale)
    title = f"{'bits per byte' if metric == BITS else 'accuracy'} on dev"

    def score(column: str) -> Spec:
        return number(column, title, scale={"zero": False})

    hover = tooltip("title: method", "trial: candidate", "settings", "score: on dev: .3f", "best: best so far: .3f")
    line = {"type": "line", "interpolate": "step-after", "strokeWidth": 1.8}
    spec = {
        "data": {"name": "search"},
        "layer": [
            {
                "mark": line,
                "encoding": {
                    "x": trial,
                    "y": score("best"),
                    "color": look["color"],
                    "strokeDash": look["strokeDash"],
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {
                    "x": trial,
                    "y": score("score"),
                    "color": look["color"],
                    "shape": look["shape"],
                    "tooltip": hover,
                },
            },
        ],
    }
    return Chart(
        name="search",
        spec=sized(spec, 280, width),
        tables={"search": table},
        filters={"search": {"group": "searched"}},
    )
