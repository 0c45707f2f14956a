"""The map of regimes: what it says is what the reports say."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipeline.report import regime_map
from pipeline.report.sources import Sources
from tests.pipeline.report.synthetic import BUDGETS, GOOD, INFO, LOST, Run

WORSE = {"ties": (-0.2, -0.1, 0.0), "ties_sv_1": (-0.3, -0.2, -0.1)}


def sources(run: Run) -> Sources:
    return Sources(info=INFO, evaluations=run.evaluations, audits=run.audits, choices=run.choices)


def test_a_spot_is_the_best_merge_on_dev_minus_ct_then_sft(tmp_path: Path) -> None:
    spots = regime_map.spots("long", sources(Run(tmp_path, GOOD, LOST)))
    assert [(spot.ct_tokens, spot.merge) for spot in spots] == [(budget, "ties_sv_1") for budget in BUDGETS]
    for kind in ("accuracy", "bits"):  # bits saved: positive is the merge's
        assert [spot.gains[kind].value for spot in spots] == pytest.approx([0.3, 0.2, 0.1])
    assert all(spot.row()["accuracy_low"] < 0.3 and spot.norms == 1.0 for spot in spots)
    assert spots[0].dev is None  # CT-then-SFT was not asked about on dev


def test_the_map_of_several_regimes_is_drawn_and_listed(tmp_path: Path) -> None:
    regimes = [
        ("short", sources(Run(tmp_path / "a", GOOD, LOST))),
        ("long", sources(Run(tmp_path / "b", WORSE, LOST))),
    ]
    lines = regime_map.write(regimes, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "map.csv").open()))
    assert [(row["regime"], row["ct_tokens"]) for row in rows] == [
        (regime, str(budget)) for regime in ("short", "long") for budget in BUDGETS
    ]
    assert "short 10k: TIES + slack 1 against CT-then-SFT: mean accuracy gained +0.300 (95% CI " in lines[0] and lines[
        -1
    ].endswith("map.png")
    drawn = (tmp_path / "out" / "map.svg").read_text()
    assert "+0.300" in drawn and "-0.200" in drawn.replace("−", "-") and "Chichewa: bits per byte saved" in drawn


def test_without_ct_then_sft_there_is_no_map(tmp_path: Path) -> None:
    run = Run(tmp_path / "a", GOOD, LOST)
    run.evaluations = [one for one in run.evaluations if one.method != "ct_then_sft"]
    assert regime_map.write([("short", sources(run))], tmp_path / "out") == [] and not (tmp_path / "out").exists()
