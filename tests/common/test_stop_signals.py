"""Signals that ask a process to end: raised once, and after a block that must not be cut in two."""

from __future__ import annotations

import os
import signal

import pytest

from common.processes import Stopped, postponing_stop, stopping_on_signals


def stop(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> object:
    """SIGINT is ignored where the suite was started with `&` in a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_raised_and_further_ones_do_not_disturb() -> None:
    with pytest.raises(Stopped) as stopped, stopping_on_signals():
        try:
            stop()
        finally:
            stop(signal.SIGINT)
            cleared = True
    assert cleared and stopped.value.number == signal.SIGTERM


def test_a_postponed_stop_comes_after_the_block_and_once() -> None:
    done: list[str] = []
    with pytest.raises(Stopped) as stopped, stopping_on_signals():
        with postponing_stop():
            stop(signal.SIGINT)
            done.append("first half")
            with postponing_stop():
                stop()
            done.append("second half")
        done.append("after")
    assert done == ["first half", "second half"] and stopped.value.number == signal.SIGINT


def test_after_a_postponing_block_a_signal_is_raised_at_once() -> None:
    done: list[str] = []
    with pytest.raises(Stopped), stopping_on_signals():
        with postponing_stop():
            pass
        stop()
        done.append("after")
    assert not done
