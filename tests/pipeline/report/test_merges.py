"""Audits as shares discarded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.report import merges
from pipeline.report.records import Audit
from tests.pipeline.report.synthetic import write_audit


def test_a_merge_without_task_vectors_discards_nothing(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(json.dumps({"method": "linear", "slack": 0.0, "protect": [], "models": {}}))
    assert merges.read_audits([Audit("linear", 10_000, 0, tmp_path)]) == []


def test_discarded_shares_are_means_over_seeds(tmp_path: Path) -> None:
    audits = [
        Audit("ties", 10_000, seed, write_audit(tmp_path / str(seed), "ties", 0.0, lost))
        for seed, lost in enumerate((0.1, 0.3))
    ]
    (one,) = merges.read_audits(audits)
    assert one.whole.lost_top == pytest.approx(0.2) and one.whole.lost == pytest.approx(0.1) and one.is_plain_ties


def test_a_control_whose_signs_are_drawn_is_not_ties(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "drawn", "ties", 0.0, 0.3)
    recipe = folder / "merge.yml"
    recipe.write_text(recipe.read_text().replace("density: 0.5", "density: 0.5\n    random_signs: true", 1))
    (drawn,) = merges.read_audits([Audit("random_signs", 10_000, 0, folder)])
    assert next(iter(drawn.settings_except_slack.values()))["models"]["ct"]["random_signs"] and not drawn.is_plain_ties
