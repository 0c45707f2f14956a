"""What a run is said to show follows its data."""

from __future__ import annotations

from pathlib import Path

from pipeline import report
from pipeline.report import claims
from pipeline.report.records import Evaluation
from tests.pipeline.report.synthetic import GOOD, LOST, SUBJECT, Run, write_scores


def test_claims_follow_the_data(tmp_path: Path) -> None:
    assert Run(tmp_path / "good", GOOD, LOST).verdicts() == ["shown"] * 5
    flipped = Run(
        tmp_path / "bad",
        {"ties": (-0.2, -0.1, 0.1), "ties_sv_1": (-0.3, -0.2, 0.05)},
        {"ties": (0.3, 0.2, 0.1), "ties_sv_1": (0.6, 0.4, 0.2)},
    )
    assert flipped.verdicts() == ["the opposite is shown"] * 5
    level = Run(
        tmp_path / "level",
        {"ties": (0.0,) * 3, "ties_sv_1": (0.0,) * 3},
        {"ties": (0.1, 0.2, 0.1), "ties_sv_1": (0.0, 0.2, 0.1)},
    )
    assert level.verdicts() == ["not shown"] * 5


def test_claims_state_the_numbers(tmp_path: Path) -> None:
    first, second, third, fourth, fifth = (answer.text for answer in Run(tmp_path, GOOD, LOST).claims().answers)
    assert (
        "At 10k tokens" in first
        and "TIES SV 1, has a mean accuracy of 0.700; CT-then-SFT has 0.400. Difference +0.300 [+0.2" in first
    )
    assert "Of the 2 merges, 2 are shown" in first and "bits per byte (lower is better): \u22120.300 [" in first
    assert "From 10k to 1M the advantage shrinks by +0.200 [+0." in second
    assert "TIES: 10.0 % at 10k, 20.0 % at 100k, 30.0 % at 1M" in third and "SV" not in third
    assert "TIES SV 1: 5.0 % at 10k" in fourth
    assert "over all budgets: +0.100 [" in fifth and "1M +0.100 [" in fifth


def test_claims_without_their_data_say_so(tmp_path: Path) -> None:
    folder = write_scores(tmp_path / "base", {"genre": 0.3}, 5.0)
    found = claims.claims([Evaluation("base", 10_000, 0, folder)], [], [], "nya")
    assert [answer.verdict for answer in found.answers] == ["no data"] * 5 and found.comparisons == []
    assert report.render([Evaluation("base", 10_000, 0, folder)], [], [], [], tmp_path / "out", SUBJECT).page.is_file()
