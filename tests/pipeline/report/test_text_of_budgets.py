"""What budgets read, from the counts of blocks."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.report.text_of_budgets import TextOfBudget, by_budget, read

COUNTS = {"tokens": 1000, "blocks": 10, "english_share": 0.2, "text_tokens": {"uig": 5000, "en": 50}}


def test_a_budget_says_how_much_of_it_is_different_text() -> None:
    assert by_budget([COUNTS], [500, 1000]) == [
        TextOfBudget(500, "uig", 400, 400, 400 / 5000),
        TextOfBudget(500, "en", 100, 50, 2.0),
        TextOfBudget(1000, "uig", 800, 800, 800 / 5000),
        TextOfBudget(1000, "en", 200, 50, 4.0),
    ]


def test_of_several_seeds_the_least_is_said_and_small_blocks_are_left_out() -> None:
    other = {**COUNTS, "text_tokens": {"uig": 300, "en": 50}}
    small = {**COUNTS, "tokens": 100, "blocks": 1, "text_tokens": {"uig": 1, "en": 1}}
    assert by_budget([COUNTS, other, small], [500])[0] == TextOfBudget(500, "uig", 400, 300, 400 / 300)
    assert by_budget([small], [500]) == []


def test_blocks_of_before_say_nothing(tmp_path: Path) -> None:
    folders = [tmp_path / "ct_blocks" / "new", tmp_path / "ct_blocks" / "bare", tmp_path / "ct" / "other"]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[0] / "counts.json").write_text(json.dumps(COUNTS))
    (folders[2] / "counts.json").write_text("{")
    assert read(folder / "stage.json" for folder in folders) == [COUNTS]
    assert by_budget([{key: value for key, value in COUNTS.items() if key != "text_tokens"}], [500]) == []
