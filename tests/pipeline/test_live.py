"""A run watched from its journal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import BadInput
from pipeline.run import live
from pipeline.run.journal import Journal
from pipeline.store import Store
from tests.pipeline import toy


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    stages = toy.plan()
    config = SimpleNamespace(name="toy", compute=SimpleNamespace(first_guess={}))
    by_key = {stage.key: stage for stage in stages}
    return SimpleNamespace(stages=stages, by_key=by_key, config=config, processes=1, store=Store(tmp_path / "store"))


def test_a_watched_run_says_what_is_done_what_runs_and_what_failed(tmp_path: Path, plan: Any) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    toy.Executor(plan.store, plan.stages, journal, maker=toy.Makers().__getitem__, say=lambda line: None).run(
        plan.stages[:2]
    )
    journal.write("started", plan.stages[2], resumed_tokens=0)
    now = live.standing(plan, journal)
    assert (now.done, now.total, now.over) == (2, 6, False)
    assert [stage.key for stage, _ in now.running] == [plan.stages[2].key] and now.by_kind["ct"] == (0, 2)
    told = live.lines(now, plan)
    assert told[0].startswith("toy: 2 of 6 stages done, about") and "runs for 1 s of about" in told[2]
    journal.write("failed", plan.stages[2], message="ct toy-20 failed: no reason")
    now = live.standing(plan, journal)
    assert now.over and now.lost == ["ct toy-20 failed: no reason"] and not now.running


def test_what_has_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run has left a plan"):
        live.newest(tmp_path)
