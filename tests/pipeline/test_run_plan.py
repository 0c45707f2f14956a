"""A run's plan is a pickle: it is read from its own user alone."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from common.errors import BadInput
from pipeline import run_plan
from pipeline.run_plan import FILE, RunPlan


class Planted:
    """What is run when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_a_plan_comes_back_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        RunPlan((), 3).save(tmp_path / "run")
    finally:
        os.umask(before)
    assert RunPlan.load(tmp_path / "run") == RunPlan((), 3)


@pytest.mark.parametrize("mode", [0o664, 0o646, None])
def test_a_plan_that_others_may_have_written_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int | None
) -> None:
    (tmp_path / FILE).write_bytes(pickle.dumps((Planted(), 1)))
    monkeypatch.chdir(tmp_path)
    if mode is None:
        monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    else:
        (tmp_path / FILE).chmod(mode)
    why = "other users may write it" if mode else "belongs to another user"
    with pytest.raises(BadInput, match=f"{FILE}: {why}"):
        RunPlan.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_plan_in_another_users_folder_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunPlan((), 3).save(tmp_path)
    mine = os.getuid()
    asked = iter((mine, mine + 1, mine + 1))
    monkeypatch.setattr(os, "getuid", lambda: next(asked))
    with pytest.raises(BadInput, match="belongs to another user"):
        RunPlan.load(tmp_path)


@pytest.mark.parametrize("change", ["older", "newer", "class"])
def test_a_plan_of_another_version_is_rejected_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    if change == "class":  # of a value in the plan, which is gone since
        monkeypatch.setattr(run_plan, "KilledSince", type("KilledSince", (), {"__module__": run_plan.__name__}), False)
        RunPlan((), run_plan.KilledSince()).save(tmp_path)
        monkeypatch.delattr(run_plan, "KilledSince")
    else:
        RunPlan((), 3).save(tmp_path)
        file = tmp_path / FILE
        before = file.read_bytes().partition(b"\n")[2]
        file.write_bytes(before if change == "older" else b"slackmerge plan 99\n" + before)
    with pytest.raises(BadInput, match=f"{FILE}: another version of slackmerge wrote this plan. Start the run again"):
        RunPlan.load(tmp_path)
