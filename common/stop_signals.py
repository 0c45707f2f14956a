"""Signals that ask a process to end, as an exception, so that cleanup runs as after any other error."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_postponed: list[int] | None = None  # the signals that came in a block of `postponing_stop`; None outside of one


class Stopped(BaseException):
    """The process was asked to end. number: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise Stopped in the main thread at the first of SIGNALS; further ones do not disturb the clearing up.

    A signal that the process was started to ignore (nohup) stays ignored. In other threads nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        if _postponed is None:
            raise Stopped(number)
        _postponed.append(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def postponing_stop() -> Iterator[None]:
    """Delay Stopped until the block ends, for calls of which all or none must run."""
    global _postponed
    if _postponed is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _postponed = []
    try:
        yield
    finally:
        came, _postponed = _postponed, None
        if came:
            raise Stopped(came[0])
