"""The pieces of a plan that start next, and their GPUs. Pure: no processes, no clock.

A wide piece is never starved. The first piece that does not get its GPUs is the head. A later piece may pass it, if the
head could still start once all that began before it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from pipeline.run.cluster.schedule import Task, cut
from pipeline.stages.stage import Stage


def pieces(stages: Sequence[Stage], waiting: Collection[str]) -> tuple[Task, ...]:
    """Cut a plan as for Slurm, each after those that it needs; but each budget of a CT trajectory is a piece.

    On one machine a piece starts in seconds, and a budget need not wait for a larger one to be scored.
    `waiting`: keys of the stages to make.
    """
    split: list[Task] = []
    for task in cut(stages, waiting):
        needs, parts = task.needs, [task.stages]
        if task.work == "train":
            parts = [(stage,) for stage in task.stages]
        for part in parts:
            split.append(Task(task.work, part, needs))
            needs |= {stage.key for stage in part}
    return tuple(split)


def width(task: Task) -> int:
    """Count the GPUs that a piece holds: one per process of a training, one for scoring and merging, none for data."""
    if task.work == "train":
        return max(int(stage.options.get("compute", {}).get("processes", 1)) for stage in task.stages)
    return 0 if task.work == "data" else 1


class Pool:
    """Pieces that wait or run, and the GPUs that they hold.

    `devices`: names, each once. `without_device`: how many pieces run at a time that hold no GPU. `elsewhere`: whether
    another command makes a piece at the moment; such pieces come last.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        devices: Sequence[str],
        without_device: int = 1,
        elsewhere: Callable[[Task], bool] = lambda task: False,
    ) -> None:
        self.devices, self.without_device, self.elsewhere = tuple(devices), without_device, elsewhere
        self.waiting = list(tasks)
        self.running: dict[Task, tuple[str, ...]] = {}
        self._head: Task | None = None
        self._passed: set[Task] = set()  # what began after the head had to wait

    def next(self) -> tuple[Task, tuple[str, ...]] | None:
        """Take the next piece that may start, with the GPUs that it holds until `end`; None: no piece may."""
        held = {device for devices in self.running.values() for device in devices}
        free = [device for device in self.devices if device not in held]
        head: Task | None = None
        for task in self._ready():
            wanted = width(task)
            if wanted == 0:
                if sum(not devices for devices in self.running.values()) < self.without_device:
                    return self._begin(task, ())
            elif head is None and wanted <= len(free):
                return self._begin(task, tuple(free[:wanted]))
            elif head is None:
                head = task
                if head is not self._head:
                    self._head, self._passed = head, set()
            elif wanted <= len(free) and self._may_pass(head, wanted):
                self._passed.add(task)
                return self._begin(task, tuple(free[:wanted]))
        return None

    def end(self, task: Task) -> None:
        """Free what a piece holds: it has ended, well or not."""
        del self.running[task]
        self._passed.discard(task)

    def drop(self, task: Task) -> None:
        """Take a piece out that waits and will not be run."""
        self.waiting.remove(task)

    def _begin(self, task: Task, devices: tuple[str, ...]) -> tuple[Task, tuple[str, ...]]:
        self.waiting.remove(task)
        self.running[task] = devices
        return task, devices

    def _may_pass(self, head: Task, wanted: int) -> bool:
        """Return whether the head could start when all has ended that began before it had to wait."""
        held = sum(len(self.running[task]) for task in self._passed)
        return held + wanted <= len(self.devices) - width(head)

    def _ready(self) -> list[Task]:
        """Return the pieces whose needs are no longer made: trainings first, as much waits for them, the widest
        before.
        """
        coming = {key for task in (*self.waiting, *self.running) for key in task.keys}
        ready = [task for task in self.waiting if not task.needs & coming]
        return sorted(
            ready,
            key=lambda task: (
                self.elsewhere(task),
                task.work != "train",
                -width(task),
                task.stages[0].kind != "ct",
            ),
        )
