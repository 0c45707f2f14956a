"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded now: a child between fork and exec must not ask the loader for it


def die_with_parent(parent: int | None = None) -> None:
    """This process is killed when what started it dies, however it dies; at once where `parent`, its id, is dead now.

    Nobody would hold the claim on what it writes. Linux; elsewhere nothing.
    """
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
