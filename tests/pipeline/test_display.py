"""What a run shows, from its journal."""

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
from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.run import collect, display
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage
from pipeline.store import Store
from tests.pipeline import toy

ROOT = Path(__file__).parents[2]


def test_a_run_shows_what_is_done_what_runs_and_what_failed(tmp_path: Path) -> None:
    store, stages, journal = Store(tmp_path / "store"), toy.plan(), Journal(tmp_path / "journal.jsonl")
    view = toy.view(store, stages, journal)
    Executor(store, stages, journal, maker=toy.Makers().__getitem__).compute(stages[:2])
    journal.write("started", stages[2], resumed_tokens=0)
    status = view.status()
    assert (status.done, status.total, status.finished, status.by_kind["ct"]) == (2, 6, False, (0, 2))
    first, _, running = str(status).splitlines()
    assert first.startswith("toy: 2 of 6 stages done, about") and running.startswith(
        "  ct toy-20: runs for 1 s of about"
    )
    journal.append({**started(journal, stages[2]), "event": "progress", "fraction": 0.5, "text": "10 of 20 tokens"})
    assert view.status().running == ["ct toy-20: 50%, 10 of 20 tokens, about 1 s left"]
    journal.write("failed", stages[2], message="ct toy-20 failed: no reason")
    status = view.status()
    assert status.finished and status.failures == ["ct toy-20 failed: no reason"] and not status.running


def started(journal: Journal, stage: Stage) -> dict[str, Any]:
    return next(event for event in journal.events("started") if event["key"] == stage.key)


def test_every_event_has_its_line(tmp_path: Path) -> None:
    """The same for stages of this process and of a Slurm job, whose events are copied with the job's number."""
    stages, journal = toy.plan(), Journal(tmp_path / "journal.jsonl")
    view, ct = toy.view(Store(tmp_path / "store"), stages, journal), stages[2]
    journal.message("2 jobs submitted")
    view.status()  # which shows no line
    journal.write("started", ct, resumed_tokens=0, job="7")
    journal.append({**started(journal, ct), "event": "progress", "fraction": 0.25, "text": "5 of 20 tokens"})
    for event in ("waiting", "saving"):
        journal.write(event, ct)
    journal.write("message", ct, text="1.5 bits per byte")
    journal.write("damaged", ct, damage="weights is missing", moved_to="store/.damaged/ct")
    journal.write("preempted", ct, message="stopped after 5 of 20 tokens")
    journal.write("published", ct, seconds=2.0, note=": 10 tokens/s")
    journal.write("not_run", stages[3], message="ct toy-40 was not run, as base toy is missing")
    journal.write("piece_ended", piece="a", code=0)
    assert [re.sub(r"about [^;]+?( left|;)", r"about T\1", line) for line in view.new_lines()] == [
        "2 jobs submitted",
        "[0/6] ct toy-20: starts in job 7, about T; all in all about T left",
        "[0/6] ct toy-20: 25%, 5 of 20 tokens, about T left",
        "[0/6] ct toy-20: waits for another job that is making it",
        "[0/6] ct toy-20: saves and ends; a second Ctrl-C ends it at once",
        "[0/6] ct toy-20: 1.5 bits per byte",
        "[0/6] ct toy-20: damaged (weights is missing); moved to store/.damaged/ct and computed again",
        "[0/6] ct toy-20: stopped after 5 of 20 tokens",
        "[1/6] ct toy-20: done in 2.0 s: 10 tokens/s",
        "[1/6] ct toy-40: ct toy-40 was not run, as base toy is missing",
    ]
    assert view.new_lines() == []


def test_where_nothing_ran_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="contains no plan"):
        display.newest_run(tmp_path)


@pytest.mark.parametrize(
    ("finished", "drawn"),
    [([True], 0), ([False, False, True], 1), ([False, True, True], 2)],  # ended before, after and while it is drawn
)
def test_a_watched_run_keeps_its_command_and_its_last_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: list[bool], drawn: int
) -> None:
    folder, arguments = tmp_path / "runs" / "now", ("run", "-m", "name=mine")
    RunPlan((), 1, arguments).save(folder)
    stages: Any = SimpleNamespace(arguments=RunPlan.load(folder).arguments)
    statuses = iter([display.RunStatus("mine", int(ended), 1, [], {"eval": (1, 1)}, [], 0.0) for ended in finished])
    view = SimpleNamespace(plan=stages, status=lambda: next(statuses))
    pages: list[Any] = []
    monkeypatch.setattr(display, "RunView", lambda plan, path: view)
    monkeypatch.setattr(display, "results_in_words", lambda plan: "a table")
    monkeypatch.setattr(display, "STATUS_EVERY_S", 0.0)
    monkeypatch.setattr(display, "DRAW_EVERY_S", 0.0)
    monkeypatch.setattr(collect, "write_report", lambda plan, arguments: pages.append(plan.arguments))
    assert display.watch(tmp_path) == 0 and pages == [arguments] * drawn


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
    left = RunPlan.load(display.newest_run(tmp_path / "outputs"))  # with the command, for who watches
    assert left.arguments[:2] == ("-m", "experiment=test")
