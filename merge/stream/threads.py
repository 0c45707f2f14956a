"""Threads that work through a plan's tensors, each on a tensor of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from common.errors import BadInput, line_of
from merge.engine.outputs import Output
from merge.engine.plan import Plan

SMALL = 1 << 23  # elements; a model of fewer is merged in the calling thread
MEMORY = 1 << 29  # bytes
RESIDENT_BYTES = 5  # an element's magnitude, and a mask while ties are counted


@dataclass(frozen=True)
class Workers:
    """How much is done at a time.

    threads: tensors worked on at a time (default: torch's number of threads). memory: bytes for working sets of all
    threads, above the few MB that slices take. progress: called after every tensor of a pass. note: takes
    a line for the user about the models.
    """

    device: str = "cpu"
    threads: int | None = None
    memory: int = MEMORY
    progress: Callable[[Plan, Output], None] | None = None
    note: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        """Reject a device that is not there."""
        if self.device != "cpu":
            try:
                torch.zeros(1, device=self.device).item()
            except Exception as error:  # of every backend its own
                raise BadInput(
                    f"device={self.device}: {line_of(error)[:120]}; use cpu, or a device that is here"
                ) from None

    @property
    def count(self) -> int:
        return self.threads or torch.get_num_threads()

    @property
    def resident(self) -> int:
        """Elements of a tensor that a thread may hold at once."""
        return self.memory // (self.count * RESIDENT_BYTES)

    def each(self, plan: Plan, work: Callable[[Output], None]) -> None:
        """`work` on every tensor of the result, the largest first; the first error ends it."""

        def work_and_tell(output: Output) -> None:
            work(output)
            if self.progress is not None:
                self.progress(plan, output)

        by_size = sorted(plan.outputs, key=lambda output: -output.numel)
        if self.count == 1 or sum(output.numel for output in by_size) < SMALL:
            for output in by_size:
                work_and_tell(output)
            return
        before = torch.get_num_threads()
        with ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for done in [pool.submit(work_and_tell, output) for output in by_size]:
                    done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                torch.set_num_threads(before)


DEFAULT = Workers()
