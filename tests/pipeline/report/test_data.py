"""Score records as rows and tables, the gates of a base, and what budgets read."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from eval.metrics import wilson
from pipeline.report import data, tables
from pipeline.report.data import DataExposure, data_exposure
from pipeline.report.stages import read_counts
from tests.pipeline.report.synthetic import GOOD, INFO, LOST, Run


def test_every_score_is_a_row_and_unmerged_models_are_given_once(tmp_path: Path) -> None:
    run = Run(tmp_path, GOOD, LOST, seeds=(0, 1))
    rows = list(csv.DictReader(data.to_csv(data.gather(run.evaluations)).splitlines()))
    assert list(rows[0]) == [
        "language",
        "task",
        "metric",
        "method",
        "ct_tokens",
        "seed",
        "value",
        "low",
        "high",
        "n",
        "chance",
        "trivial",
    ]
    assert len(rows) == (3 + 7 * 3) * 2 * 2 * 9  # checkpoints, seeds, languages, records of a language
    found = [
        row
        for row in rows
        if row["task"] == "genre_nya"
        and row["method"] == "ties"
        and row["metric"] == "acc"
        and row["ct_tokens"] == "10000"
    ]
    assert [(float(row["value"]), row["seed"], row["n"]) for row in found] == [(0.6, "0", "200"), (0.7, "1", "200")]
    assert (float(found[0]["low"]), float(found[0]["high"])) == wilson(120, 200)
    assert {row["ct_tokens"] for row in rows if row["method"] in ("base", "sft")} == {"0"}
    assert {row["chance"] for row in rows if row["metric"] == "bits_per_byte"} == {""}


def test_tables_show_means_over_seeds_and_mark_the_best(tmp_path: Path) -> None:
    rows = data.gather(Run(tmp_path, GOOD, LOST, seeds=(0, 1)).evaluations)
    text = tables.results_md(rows, INFO)
    assert text.index("## Chichewa") < text.index("## English")
    assert "| measure | method | no CT | 10k | 100k | 1M |" in text
    assert "| mean accuracy | TIES + slack 1 |  | **0.750** | **0.650** | **0.550** |" in text
    assert "| mean accuracy | TIES |  | 0.650 | 0.550 | 0.450 |" in text
    assert "| mean accuracy (chance 0.250, trivial 0.300) | base | 0.260 |  |  |  |" in text
    assert re.search(r"\| bits per byte \| TIES \+ slack 1 \|  \| \*\*3\.\d+\*\* \|", text)  # the lowest is best
    printed = tables.terminal_table(rows, "nya")
    assert re.search(
        r"^TIES \+ slack 1 +0\.750 / 3\.\d{3} +0\.650 / 3\.\d{3} +0\.550 / 2\.\d{3}$", printed, re.MULTILINE
    )
    assert len(printed.splitlines()) == 12


SCORES = {  # (language, family, method): accuracy
    ("nya", "next", "base"): 0.30,
    ("nya", "next", "ct"): 0.41,
    ("nya", "next", "sft"): 0.30,
    ("nya", "next", "target_sft"): 0.45,
    ("nya", "blank", "sft"): 0.25,
    ("nya", "blank", "target_sft"): 0.34,
    ("en", "next", "sft"): 0.70,
    ("en", "blank", "sft"): 0.10,
}


def rows(scores: dict[tuple[str, str, str], float] = SCORES) -> list[dict[str, Any]]:
    made = []
    for (language, family, method), value in scores.items():
        tokens = 0 if method in ("base", "sft") else 600_000
        score = {"language": language, "family": family, "method": method, "ct_tokens": tokens, "seed": 0}
        score |= {"metric": "acc", "primary": True, "value": value}
        made += [score, {**score, "metric": "answer_bits_per_byte", "primary": False, "value": 9.0}]
        if method == "ct":  # a smaller budget does not count
            made.append({**score, "ct_tokens": 1_000, "value": 0.0})
    return made


def gates(rows: list[dict[str, Any]]) -> list[data.Gate]:
    return data.gates(data.frame(list(rows[0]), rows), "nya")


def test_families_without_room_leave_and_the_rest_is_judged() -> None:
    answers = {(gate.kind, gate.family): (round(gate.value, 2), gate.passed) for gate in gates(rows())}
    assert answers == {
        ("learns", "next"): (0.11, True),
        ("room", "next"): (0.15, True),
        ("room", "blank"): (0.09, False),
        ("skill", "next"): (0.70, True),  # of the families kept only
    }


def test_seeds_are_averaged() -> None:
    both = [*rows(), *({**row, "seed": 1, "value": row["value"] - 0.08} for row in rows() if row["method"] == "ct")]
    learns = next(gate for gate in gates(both) if gate.kind == "learns")
    assert (round(learns.value, 2), learns.passed) == (0.07, False)
    assert "FAILED" in str(learns)


def test_without_sft_in_the_language_there_are_no_gates() -> None:
    assert gates([row for row in rows() if row["method"] != "target_sft"]) == []


COUNTS = {"tokens": 1000, "blocks": 10, "english_share": 0.2, "text_tokens": {"uig": 5000, "en": 50}}


def test_a_budget_says_how_much_of_it_is_different_text() -> None:
    assert data_exposure([COUNTS], [500, 1000]) == [
        DataExposure(500, "uig", 400, 400, 400 / 5000),
        DataExposure(500, "en", 100, 50, 2.0),
        DataExposure(1000, "uig", 800, 800, 800 / 5000),
        DataExposure(1000, "en", 200, 50, 4.0),
    ]


def test_of_several_seeds_the_least_is_said_and_small_blocks_are_left_out() -> None:
    other = {**COUNTS, "text_tokens": {"uig": 300, "en": 50}}
    small = {**COUNTS, "tokens": 100, "blocks": 1, "text_tokens": {"uig": 1, "en": 1}}
    assert data_exposure([COUNTS, other, small], [500])[0] == DataExposure(500, "uig", 400, 300, 400 / 300)
    assert data_exposure([small], [500]) == []


def test_blocks_of_before_have_no_exposure(tmp_path: Path) -> None:
    kinds = {"new": "ct_blocks", "bare": "ct_blocks", "other": "ct"}
    records = [(tmp_path / name / "stage.json", {"kind": kind}) for name, kind in kinds.items()]
    for path, _ in records:
        path.parent.mkdir()
    (tmp_path / "new" / "counts.json").write_text(json.dumps(COUNTS))
    (tmp_path / "other" / "counts.json").write_text("{")
    assert read_counts(records) == [COUNTS]
    assert data_exposure([{key: value for key, value in COUNTS.items() if key != "text_tokens"}], [500]) == []
