"""How a process behaves: it dies with its parent, it cleans up when it is asked to end, and its libraries are silent.

Imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context
from types import FrameType
from typing import Any, TypeVar

SILENT = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded now: a child between fork and exec must not call the loader
_postponed: list[int] | None = None  # the signals that came in a block of `postponing_stop`; None outside of one


def silence() -> None:
    """Turn off progress bars and advice of libraries; child processes inherit it.

    Libraries read these variables when they are imported, so call this first. What a user set stays.
    """
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it: on some CPUs it advises a package


def die_with_parent(parent: int | None = None) -> None:
    """Kill this process when its parent dies, however it dies; at once if `parent`, its id, is dead now.

    Otherwise it would write on without the lock on its output. Linux only; elsewhere this does nothing.
    """
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class Stopped(BaseException):
    """The process was asked to end. number: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise Stopped in the main thread at the first of SIGNALS; ignore further ones during the cleanup.

    A signal that the process was started to ignore (nohup) stays ignored. In other threads nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
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
        received, _postponed = _postponed, None
        if received:
            raise Stopped(received[0])


Task = TypeVar("Task")
Result = TypeVar("Result")


def _start_worker(parent: int, init_worker: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    die_with_parent(parent)  # else a worker continues with queued tasks without a lock on its output
    if init_worker:
        init_worker(*arguments)


class Workers(AbstractContextManager["Workers"]):
    """`count` processes, each prepared by `init_worker(*arguments)`, if given; one means this process itself.

    Several callers may share them.
    """

    def __init__(
        self, count: int, init_worker: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
    ) -> None:
        self.count = count
        self.pool = None
        if count > 1:  # spawned, not forked: a fork of a process with threads (torch, tokenizers) may hang
            context = get_context("spawn")
            ready = (os.getpid(), init_worker, arguments)
            self.pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=ready)
        elif init_worker:
            init_worker(*arguments)

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], ahead: int | None = None
    ) -> Iterator[Result]:
        """Yield `function(task)` for each task, in order.

        At most `ahead` tasks (None: one a process) are submitted before their result is asked for.

        Tasks are taken one by one, so that they may be endless. A caller that stops asking leaves at most `ahead`
        results unused.
        """
        if self.pool is None:
            yield from map(function, tasks)
            return
        submitted: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                submitted.append(self.pool.submit(function, task))
                if len(submitted) > (self.count if ahead is None else ahead):
                    yield submitted.popleft().result()
            while submitted:
                yield submitted.popleft().result()
        finally:
            for future in submitted:
                future.cancel()
