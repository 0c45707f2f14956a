"""Ctrl-C, which is no reason to lose work: trainings save and end, everything else ends at once.

A second Ctrl-C ends what is still saving. A terminal sends SIGINT to all processes of a command, and a launcher passes
it on to its own as it may have come to the launcher alone: what follows within `ONE_PRESS_S` is the same Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from common.errors import Interrupted

ONE_PRESS_S = 1.0

_pressed: list[float] = []  # when SIGINT came to this process
_deferred: list[Callable[[], None]] = []  # callbacks for Ctrl-C instead of an end, innermost last


def listen() -> None:
    """Handle SIGINT in this process as described above. Call this in its main thread, as Python requires."""
    signal.signal(signal.SIGINT, _on_sigint)


def requested() -> bool:
    """Return whether there was a Ctrl-C."""
    return bool(_pressed)


@contextmanager
def deferred(on_interrupt: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Defer Ctrl-C inside the block: call `on_interrupt`, and raise KeyboardInterrupt when the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _on_sigint)
    _deferred.append(on_interrupt)
    try:
        yield
    except Interrupted:  # it has saved
        if not _pressed:
            raise
    finally:
        _deferred.pop()
        signal.signal(signal.SIGINT, before)
    if _pressed:
        raise KeyboardInterrupt


def _on_sigint(signum: int, frame: FrameType | None) -> None:
    first = not _pressed
    _pressed.append(time.monotonic())
    if not first and _pressed[-1] - _pressed[0] < ONE_PRESS_S:
        return
    if not first or not _deferred:
        raise KeyboardInterrupt
    _deferred[-1]()
