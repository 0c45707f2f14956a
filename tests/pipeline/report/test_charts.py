"""What charts are drawn from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.files import write_jsonl
from pipeline.report import figures, merges, view
from pipeline.report.charts.merges import slack_table
from pipeline.report.charts.scores import tradeoff_table
from pipeline.report.charts.search import search_table
from pipeline.report.charts.style import method_styles, shown_first
from pipeline.report.data import frame, gather
from pipeline.report.records import Choice
from pipeline.report.stages import StageRecords
from tests.pipeline.report.points import frontier
from tests.pipeline.report.synthetic import GOOD, INFO, LOST, Run


@pytest.mark.parametrize("width", [None, 400])
def test_every_chart_has_the_tables_that_its_spec_reads(tmp_path: Path, width: int | None) -> None:
    """The page and the figures draw what a chart names, and filter by columns and choices that there are."""
    run = Run(tmp_path, GOOD, LOST, sampler="tpe")
    points = frontier(tmp_path / "points", "ties", [(2.0, 0.35), (2.4, 0.45)], budget=10_000)
    points += frontier(tmp_path / "points", "ct_then_sft", [(2.1, 0.3), (2.5, 0.4)], budget=10_000)
    seen = view.picture(run.analysis(frontier=points), width)
    assert {"claims", "curves", "tradeoff", "frontiers", "gap", "forest", "heat", "slack", "search", "hours"} <= set(
        seen.charts
    )
    for chart in seen.charts.values():
        read = set(re.findall(r'"data": \{"name": "(\w+)"\}', json.dumps(chart.spec)))
        assert set(chart.tables) == read, chart.name
        for name, filters in chart.filters.items():
            assert set(filters) <= set(chart.tables[name].columns) and set(filters.values()) <= set(seen.state)
        assert set(chart.params.values()) <= set(seen.state)


def test_packed_tables_hold_what_the_rows_hold() -> None:
    rows = [("ties", 0.5), ("linear", None), ("ties", 1.0)]
    packed = view.packed(frame(("method", "value"), rows))
    words = packed["columns"][0]["values"]
    assert [(words[method], value) for method, value in packed["rows"]] == rows


def test_sharing_saved_what_cells_and_budgets_did_not_make_again() -> None:
    base = {"kind": "base", "seconds": 3600.0, "cells": 4, "amount": 1.0}
    later = {"kind": "ct", "seconds": 1800.0, "cells": 1, "amount": 0.5, "resumed_tokens": 500_000}
    assert StageRecords([base, later]).total_hours == pytest.approx((1.5, 3.0 + 0.5))


def test_what_trainings_measured_on_dev_is_drawn_by_stage_and_language() -> None:
    line = {"tokens": 512, "of_tokens": 1024, "dev_bits_per_byte": {"nya": 2.5, "en": 1.25}}
    stages = [{"kind": "ct", "slug": "nya-1024-s0", "dev": [line]}, {"kind": "eval", "slug": "nya-ct", "dev": []}]
    assert StageRecords(stages).training_curves(INFO).to_dict("records") == [
        {"stage": "ct nya-1024-s0", "language": "Chichewa", "tokens": 512, "bits": 2.5},
        {"stage": "ct nya-1024-s0", "language": "English", "tokens": 512, "bits": 1.25},
    ]
    assert StageRecords([{"kind": "ct", "slug": "older than this"}]).training_curves(INFO).empty


def test_a_slack_sweep_is_of_merges_that_differ_in_nothing_else(tmp_path: Path) -> None:
    swept = view.picture(Run(tmp_path, GOOD, LOST).analysis()).tables["slack"]
    free, at_norm = "density 0.5, lambda 1.5", "density 0.5, norm 1.0"
    assert {(row.group, row.method, row.slack) for row in swept.itertuples()} == {
        *((free, "ties", "0"), (free, "ties_sv_1", "1")),
        *((at_norm, "ties_at_norm", "0"), (at_norm, "ties_sv_1_at_norm", "1")),
    }
    other = Run(tmp_path / "tuned", GOOD, LOST, lambdas={"ties": 1.0})
    assert set(view.picture(other.analysis()).tables["slack"].group) == {at_norm}


def test_each_variant_of_slack_is_swept_by_itself(tmp_path: Path) -> None:
    """Five merges of one norm and four slacks of 1 are no sweep of one slack."""
    lost = {"ties": (0.1, 0.2, 0.3), "ties_sv_1": (0.05, 0.1, 0.15), "ties_sv_both": (0.04, 0.08, 0.1)}
    run = Run(tmp_path, {}, lost)
    for audit in (audit for audit in run.audits if audit.method == "ties_sv_both"):
        recipe = audit.folder / "merge.yml"
        recipe.write_text(recipe.read_text() + "on_slack: both\nslack_form: ratio\n")
    swept = slack_table(tradeoff_table(gather([]), "nya"), merges.read_audits(run.audits))
    groups = {(row.group, row.method) for row in swept.itertuples() if not row.method.endswith("_at_norm")}
    one, other = "density 0.5, lambda 1.5", "density 0.5, lambda 1.5, on_slack both"
    assert groups == {(one, "ties"), (one, "ties_sv_1"), (other, "ties"), (other, "ties_sv_both")}


def test_a_search_is_drawn_by_trial_and_the_best_so_far(tmp_path: Path) -> None:
    """The best falls for bits per byte and rises for accuracy; a grid is no search."""
    settings = [
        {"lambda": 1.23456789, "density": 0.5},
        {"lambda": 0.5, "density": 1.0},
        {"lambda": 1.0, "density": 1.0},
    ]
    for metric, scores, best in (
        ("bits_per_byte", [2.5, 2.7, 2.25], [2.5, 2.5, 2.25]),
        ("acc", [0.5, 0.25, 0.75], [0.5, 0.5, 0.75]),
    ):
        rows = [
            {"settings": {"method": "ties", **one}, "metric": metric, "score": score}
            for one, score in zip(settings, scores, strict=True)
        ]
        folder = tmp_path / metric
        folder.mkdir()
        write_jsonl(folder / "tries.jsonl", rows)
        (folder / "choice.yml").write_text(json.dumps(rows[2]["settings"]))
        selected = merges.read_choices(
            [Choice("ties", 32_000, 1, folder, sampler="cmaes"), Choice("linear", 32_000, 1, folder)]
        )
        assert [one.found_by for one in selected] == ["search (CMA-ES)", "grid"]
        table = search_table(selected)
        assert list(table.best) == best and list(table.score) == scores
        assert set(table.group) == {"32k tokens, seed 1"} and list(table.trial) == [1, 2, 3]
        assert table.settings[0] == "lambda = 1.23, density = 0.5"


def test_methods_keep_their_styles_apart_and_one_of_each_family_is_shown_first() -> None:
    merges = [f"{name}_{number}" for name in ("linear", "ties", "ties_sv", "dare_ties") for number in range(5)]
    drawn = method_styles(["base", "sft", "ct", "ct_then_sft", *merges], {"ties_4": "della"})
    assert len({(style.color, style.dash, style.shape) for style in drawn.values()}) == 24
    assert drawn["ties_4"].family == "DELLA" and drawn["ties_3"].family == "TIES"
    assert shown_first(drawn)[4:] == ["linear_0", "ties_0", "ties_4", "ties_sv_0", "dare_ties_0"]
    both = [f"{report}/{method}" for report in ("wsd", "cosine") for method in ("ct", "ct_then_sft", "ties")]
    assert shown_first(method_styles(both, {})) == ["wsd/ct_then_sft", "cosine/ct_then_sft", "wsd/ties"]


def test_a_figure_draws_what_the_page_shows_first(tmp_path: Path) -> None:
    seen = view.picture(Run(tmp_path, GOOD, {}).analysis(), 400)
    spec = figures.selected(seen.charts["curves"], {**seen.state, "methods": ["ties"]}, seen.styles)
    rows = spec["datasets"]["scores"]
    assert [(row["title"], row["tokens"], row["value"]) for row in rows] == [
        ("TIES", 10_000, 0.65),
        ("TIES", 100_000, 0.55),
        ("TIES", 1_000_000, 0.45),
    ]
    assert {row["level"] for row in spec["datasets"]["levels"]} == {"chance", "trivial"}
