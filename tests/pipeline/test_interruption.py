"""Ctrl-C: what is saving is left to save, everything else ends at once, and a second one ends all."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from common.errors import Interrupted
from pipeline import interruption


@pytest.fixture(autouse=True)
def _listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(interruption, "_pressed", [])
    before = signal.getsignal(signal.SIGINT)
    interruption.listen()
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def press_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "ONE_PRESS_S", 0.0)
    press()


def test_it_ends_what_does_not_save() -> None:
    with pytest.raises(KeyboardInterrupt):
        press()


def test_what_saves_is_told_once_and_ends_by_itself() -> None:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt), interruption.deferred(lambda: told.append("save")):
        press()
        press()  # the terminal's and the launcher's: one Ctrl-C
        assert interruption.requested()
        told.append("saved")
        raise Interrupted("as trainings end when they were told to")
    assert told == ["save", "saved"]


def test_a_second_one_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), interruption.deferred():
        press()
        press_again(monkeypatch)
        pytest.fail("the second one was not heard")


def test_a_save_that_fails_is_told_as_itself() -> None:
    with pytest.raises(OSError, match="full"), interruption.deferred():
        press()
        raise OSError("the disk is full")


def test_without_one_nothing_changes() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted), interruption.deferred():
        raise Interrupted("by Slurm")
    assert signal.getsignal(signal.SIGINT) is handler
    assert not interruption.requested()
