"""Processes that must not outlive the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded now: a child between fork and exec must not call the loader


def die_with_parent(parent: int | None = None) -> None:
    """Kill this process when its parent dies, however it dies; at once if `parent`, its id, is dead now.

    Otherwise nobody would hold the lock on its output. Linux only; elsewhere this does nothing.
    """
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
