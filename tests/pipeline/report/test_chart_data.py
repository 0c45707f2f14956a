"""What charts are drawn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report import chart_data, data, figures, view
from pipeline.report.chart_data import Table
from pipeline.report.charts.style import looks, shown_first
from tests.pipeline.report.synthetic import GOOD, LOST, SUBJECT, Run


def test_packed_tables_hold_what_the_rows_hold() -> None:
    table = Table(("method", "value"), [("ties", 0.5), ("linear", None), ("ties", 1.0)])
    packed = table.packed()
    words = packed["columns"][0]["values"]
    assert [(words[method], value) for method, value in packed["rows"]] == list(table.rows)


def test_sharing_saved_what_cells_and_budgets_did_not_make_again() -> None:
    base = {"kind": "base", "seconds": 3600.0, "cells": 4, "amount": 1.0}
    later = {"kind": "ct", "seconds": 1800.0, "cells": 1, "amount": 0.5, "resumed_tokens": 500_000}
    table = chart_data.hours([base, later])
    assert chart_data.total_hours(table) == pytest.approx((1.5, 3.0 + 0.5))


def test_what_trainings_measured_on_dev_is_drawn_by_stage_and_language() -> None:
    line = {"tokens": 512, "of_tokens": 1024, "dev_bits_per_byte": {"bod": 2.5, "en": 1.25}}
    stages = [{"kind": "ct", "slug": "bod-1024-s0", "dev": [line]}, {"kind": "eval", "slug": "bod-ct", "dev": []}]
    table = chart_data.training(stages, "bod", "བོད་སྐད")
    assert table.records() == [
        {"stage": "ct bod-1024-s0", "language": "བོད་སྐད", "tokens": 512, "bits": 2.5},
        {"stage": "ct bod-1024-s0", "language": "English", "tokens": 512, "bits": 1.25},
    ]
    assert not chart_data.training([{"kind": "ct", "slug": "older than this"}], "bod", "Tibetan").rows


def test_a_slack_sweep_is_of_merges_that_differ_in_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path, GOOD, LOST)
    found = view.Findings(data.gather(run.evaluations), run.claims(), *_read(run), [], SUBJECT)
    swept = view.picture(found).tables["slack"].records()
    by_group = {(row["group"], row["method"], row["slack"]) for row in swept}
    free, at_norm = "density 0.5, lambda 1.5", "density 0.5, norm 1.0"
    assert by_group == {
        *((free, "ties", "0"), (free, "ties_sv_1", "1")),
        *((at_norm, "ties_at_norm", "0"), (at_norm, "ties_sv_1_at_norm", "1")),
    }
    other = Run(tmp_path / "tuned", GOOD, LOST, lambdas={"ties": 1.0})
    found = view.Findings(data.gather(other.evaluations), other.claims(), *_read(other), [], SUBJECT)
    assert {row["group"] for row in view.picture(found).tables["slack"].records()} == {at_norm}


def test_each_reading_of_slack_is_swept_by_itself(tmp_path: Path) -> None:
    """Five merges of one norm and four slacks of 1 are no sweep of one slack."""
    lost = {"ties": (0.1, 0.2, 0.3), "ties_sv_1": (0.05, 0.1, 0.15), "ties_sv_both": (0.04, 0.08, 0.1)}
    run = Run(tmp_path, {}, lost)
    for audit in (audit for audit in run.audits if audit.method == "ties_sv_both"):
        recipe = audit.folder / "merge.yml"
        recipe.write_text(recipe.read_text() + "on_slack: both\nslack_form: ratio\n")
    discarded, _ = _read(run)
    swept = chart_data.slack_sweep([], discarded, "nya").records()
    groups = {(row["group"], row["method"]) for row in swept if not str(row["method"]).endswith("_at_norm")}
    one, other = "density 0.5, lambda 1.5", "density 0.5, lambda 1.5, on_slack both"
    assert groups == {(one, "ties"), (one, "ties_sv_1"), (other, "ties"), (other, "ties_sv_both")}


def _read(run: Run) -> tuple[list, list]:  # type: ignore[type-arg]
    from pipeline.report import merges

    return merges.read_audits(run.audits), merges.read_choices(run.choices)


def test_methods_keep_their_looks_apart_and_one_of_each_family_is_shown_first() -> None:
    merges = [f"{name}_{number}" for name in ("linear", "ties", "ties_sv", "dare_ties") for number in range(5)]
    drawn = looks(["base", "sft", "ct", "ct_then_sft", *merges], {"ties_4": "della"})
    assert len({(look.color, look.dash, look.shape) for look in drawn.values()}) == 24
    assert drawn["ties_4"].family == "DELLA" and drawn["ties_3"].family == "TIES"
    assert shown_first(drawn)[4:] == ["linear_0", "ties_0", "ties_4", "ties_sv_0", "dare_ties_0"]


def test_a_figure_draws_what_the_page_shows_first(tmp_path: Path) -> None:
    run = Run(tmp_path, GOOD, {})
    found = view.Findings(data.gather(run.evaluations), run.claims(), [], [], [], SUBJECT)
    seen = view.picture(found, 400)
    spec = figures.selected(seen.charts["curves"], seen.tables, {**seen.state, "methods": ["ties"]}, seen.looks)
    rows = spec["datasets"]["scores"]
    assert [(row["title"], row["tokens"], row["value"]) for row in rows] == [
        ("TIES", 10_000, 0.65),
        ("TIES", 100_000, 0.55),
        ("TIES", 1_000_000, 0.45),
    ]
    assert {row["level"] for row in spec["datasets"]["levels"]} == {"chance", "trivial"}
