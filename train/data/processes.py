"""Work for several processes, with results in the order of the tasks.

Results do not depend on the number of processes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import get_context
from typing import Any, TypeVar

from common.processes import die_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")


def _ready(parent: int, init_worker: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
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
            self.pool = ProcessPoolExecutor(count, mp_context=context, initializer=_ready, initargs=ready)
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
