"""Score records as rows and tables."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from eval.metrics import wilson
from pipeline.report import results
from tests.pipeline.report.synthetic import GOOD, LOST, Run


def test_every_score_is_a_row_and_unmerged_models_are_given_once(tmp_path: Path) -> None:
    run = Run(tmp_path, GOOD, LOST, seeds=(0, 1))
    rows = list(csv.DictReader(results.to_csv(results.gather(run.evaluations)).splitlines()))
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
    rows = results.gather(Run(tmp_path, GOOD, LOST, seeds=(0, 1)).evaluations)
    text = results.to_markdown(rows, "nya", {"nya": "Chichewa", "en": "English"})
    assert text.index("## Chichewa") < text.index("## English")
    assert "| measure | method | no CT | 10k | 100k | 1M |" in text
    assert "| mean accuracy | TIES + slack 1 |  | **0.750** | **0.650** | **0.550** |" in text
    assert "| mean accuracy | TIES |  | 0.650 | 0.550 | 0.450 |" in text
    assert "| mean accuracy (chance 0.250, trivial 0.300) | base | 0.260 |  |  |  |" in text
    assert re.search(r"\| bits per byte \| TIES \+ slack 1 \|  \| \*\*3\.\d+\*\* \|", text)  # the lowest is best
    printed = results.terminal_table(rows, "nya")
    assert re.search(
        r"^TIES \+ slack 1 +0\.750 / 3\.\d{3} +0\.650 / 3\.\d{3} +0\.550 / 2\.\d{3}$", printed, re.MULTILINE
    )
    assert len(printed.splitlines()) == 12
