"""What a merge says of its progress."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from merge import cli


@pytest.fixture
def plan() -> Any:
    outputs = [SimpleNamespace(name=f"model.layers.{number}.mlp") for number in range(4)]
    return SimpleNamespace(outputs=outputs, bytes_of=lambda output: 1_000_000)


def told(plan: Any, quiet: bool = False, name: str = "") -> None:
    with cli.Progress(quiet, passes=2, name=name) as advance:
        for output in plan.outputs:
            if advance:
                advance(plan, output)


def test_without_a_terminal_it_is_a_line_now_and_then(
    plan: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told(plan)
    assert capsys.readouterr().err == "", "what takes a moment says nothing"
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(cli.time, "monotonic", lambda: float(next(clock)))
    told(plan)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("merge: 25%, 2.00MB of 8.00MB read, ") and first.endswith(" left")
    assert second.startswith("merge: 50%, 4.00MB of 8.00MB read, ")
    assert "\r" not in first


def test_quiet_says_nothing(plan: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "LINE_EVERY_S", 0.0)
    told(plan, quiet=True)
    assert capsys.readouterr().err == ""


def test_one_of_several_has_its_name(
    plan: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "LINE_EVERY_S", 0.0)
    told(plan, name="mitte")
    assert capsys.readouterr().err.startswith("merge mitte: 12%, 1.00MB of 8.00MB read, ")
