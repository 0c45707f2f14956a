"""A run watched from its journal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import BadInput
from pipeline.journal import Journal
from pipeline.run import collect, live
from pipeline.run_plan import RunPlan
from pipeline.store import Store
from tests.pipeline import toy

ROOT = Path(__file__).parents[2]


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
    assert [running.stage.key for running in now.running] == [plan.stages[2].key] and now.by_kind["ct"] == (0, 2)
    told = live.lines(now, "toy")
    assert told[0].startswith("toy: 2 of 6 stages done, about") and "runs for 1 s of about" in told[2]
    journal.note(plan.stages[2], "53%, 11 of 20 tokens, about 4 s left")
    assert live.lines(live.standing(plan, journal), "toy")[2] == "  ct toy-20: 53%, 11 of 20 tokens, about 4 s left"
    journal.write("failed", plan.stages[2], message="ct toy-20 failed: no reason")
    now = live.standing(plan, journal)
    assert now.over and now.lost == ["ct toy-20 failed: no reason"] and not now.running


def test_what_has_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="contains no plan"):
        live.newest(tmp_path)


@pytest.mark.parametrize(
    ("over", "drawn"),
    [([True], 0), ([False, False, True], 1), ([False, True, True], 2)],  # ended before, after and while it is drawn
)
def test_a_watched_run_keeps_its_command_and_its_last_page(
    tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch, over: list[bool], drawn: int
) -> None:
    folder, arguments = tmp_path / "runs" / "now", ("run", "-m", "name=mine")
    RunPlan((), 1, arguments).save(folder)
    plan.arguments = RunPlan.load(folder).arguments
    kinds = {"eval": (1, 1)}
    looks = iter([live.Standing(int(ended), 1, [], kinds, [], 0.0) for ended in over])
    pages: list[Any] = []
    monkeypatch.setattr(RunPlan, "load", lambda folder: plan)
    monkeypatch.setattr(live, "standing", lambda plan, journal: next(looks))
    monkeypatch.setattr(live, "curve", lambda plan: "a table")
    monkeypatch.setattr(live, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(live, "DRAW_EVERY_S", 0.0)
    monkeypatch.setattr(collect, "write_report", lambda plan, arguments: pages.append(arguments))
    assert live.watch(tmp_path) == 0 and pages == [arguments] * drawn


def plain(seen: str) -> str:
    """What a terminal showed, without its codes for colours and the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)


def run_on_terminal(folder: Path, until: Sequence[str]) -> tuple[str, int]:
    """What a terminal of 100 columns got to see, with Ctrl-C when all patterns `until` were seen; the exit code."""
    shown, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))

    def takes_the_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in what a script starts in the background

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.run_on_terminal", str(folder)],
        cwd=ROOT, env=environment, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=takes_the_terminal,  # noqa: PLW1509  # one thread
    )  # fmt: skip
    os.close(terminal)
    seen, pressed = b"", False
    with contextlib.suppress(OSError):  # EIO: the program has ended
        while part := os.read(shown, 65536):
            seen += part
            words = plain(seen.decode(errors="replace"))
            if not pressed and all(re.search(pattern, words) for pattern in until):
                os.write(shown, b"\x03")
                pressed = True
    os.close(shown)
    return seen.decode(), process.wait(timeout=300)  # of a hang, not of slowness


def test_a_terminal_shows_where_the_run_stands_and_ctrl_c_ends_it_in_one_line(tmp_path: Path) -> None:
    looks_like = (
        r"test: 2 of 28 stages done, about .* left",
        r"ct \S+: 25%, 512 of 2,048 tokens, loss 2.50, 1,000 tokens/s, about",
        r"nya: mean accuracy / bits per byte, by CT tokens",
        r"0\.400 / 2\.001",
        "a line of its own",
        "a line of a child",
        "under way",
    )
    seen, code = run_on_terminal(tmp_path, looks_like)
    assert code == 130
    words = plain(seen)
    for pattern in looks_like:
        assert re.search(pattern, words), pattern
    for line in ("a line of its own", "a line of a child", "under way"):
        assert words.count(line) == 1, line
    assert words.rstrip().splitlines()[-1].endswith("interrupted; finished stages are kept, and the next run resumes")
    assert "Traceback" not in words
    assert not seen.endswith("\x1b[?25l") and seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l")  # the cursor is back


def test_without_a_terminal_the_lines_are_those_of_before(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.run_on_terminal", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    said = []
    while not said or "under way" not in said[-1]:
        said.append(next(process.stdout))
    process.kill()
    process.wait()
    text = "".join(said)
    assert "\x1b" not in text and "stages done" not in text
    assert len(re.findall(r"\[ ?\d+/28\] eval .*: starts, about .* left\n", text)) == 2
    assert re.search(r"\[ ?\d+/28\] ct \S+: 25%, 512 of 2,048 tokens, loss 2.50, 1,000 tokens/s, about .* left\n", text)
    assert not list(tmp_path.rglob(live.SAID))
    left = RunPlan.load(live.newest(tmp_path / "outputs"))  # with the command, for who watches
    assert left.arguments[:2] == ("-m", "experiment=test")
