"""`python -m tests.gpu` on a CPU: one JSON line per step, and what a step's process does stops no other step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import __main__ as script
from tests.gpu import steps


def test_the_quick_steps_run_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    code = script.main(["--device", "cpu", "--quick"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["step"]: line for line in lines}
    assert code == 0 and list(found) == [*steps.QUICK, "summary"], lines
    for name in ("tests-one-device", "memory"):
        assert found[name]["status"] == "skipped" and "needs a CUDA device" in found[name]["reason"]
    assert found["evaluation"]["status"] == found["merge-throughput"]["status"] == "passed", lines
    assert found["evaluation"]["requests"] == 160 and found["evaluation"]["largest_difference_nats"] < 1e-3
    assert found["merge-throughput"]["bytes_read"] > 0
    assert (found["summary"]["passed"], found["summary"]["failed"], found["summary"]["skipped"]) == (2, 0, 2)


CODE = {
    "crashes": "import os; print('last words'); os._exit(3)",
    "hangs": "import time; print('begun', flush=True); time.sleep(600)",
}


@pytest.mark.parametrize(("kind", "reason"), [("crashes", "exit code 3; .*last words"), ("hangs", "no result after")])
def test_a_step_whose_process_crashes_or_hangs_is_a_failed_line(
    kind: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re
    import sys

    start = script.subprocess.Popen
    monkeypatch.setattr(
        script.subprocess, "Popen", lambda command, **how: start([sys.executable, "-c", CODE[kind]], **how)
    )
    line = script.run("memory", "cpu", tmp_path, 60 if kind == "crashes" else 0.5)
    assert line["status"] == "failed" and re.search(reason, line["reason"]), line


def test_a_failed_step_stops_no_other_and_makes_the_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter(["failed", "passed"])
    monkeypatch.setattr(script, "run", lambda name, *_: {"step": name, "status": next(ends), "seconds": 1.0})
    assert script.main(["--device", "cpu", "--only", "memory", "resume"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == ["memory", "resume", "summary"]
    assert lines[-1] == {"step": "summary", "device": "cpu", "passed": 1, "failed": 1, "skipped": 0, "seconds": 2.0}


@pytest.mark.parametrize("name", list(steps.STEPS))
def test_a_step_names_the_devices_that_are_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "devices", lambda: 0)
    steps.main(name, "cuda", tmp_path, tmp_path / "out.json")
    found: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    assert found["status"] == "skipped" and "needs" in found["reason"] and "CUDA" in found["reason"], found


def test_a_wrong_number_and_a_missing_library_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "devices", lambda: 2)
    monkeypatch.setattr(steps, "find_spec", lambda name: None)
    with pytest.raises(steps.Missing, match="flash-attn"):
        steps.attention("cuda", tmp_path)
    with pytest.raises(steps.Missing, match="deepspeed"):
        steps.two_processes("cuda", tmp_path, "zero2")
    monkeypatch.setitem(steps.STEPS, "memory", lambda device, folder: 1 / 0)
    steps.main("memory", "cuda", tmp_path, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["reason"] == "ZeroDivisionError: division by zero"
