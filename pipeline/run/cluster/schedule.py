"""A sweep's plan -> jobs, so that none holds a machine while it waits for another's stage. Pure: no Slurm, no files.

    data      ── corpus, items and blocks of a language, in one job
    train     ── one job a base model, one a CT trajectory (budgets ascending), one an SFT model;
                 CT-then-SFT after its trajectory
    evaluate  ── one job a checkpoint to score, or a merging method of a cell (tune, merge, score): arrays

A job starts when the jobs that make what it reads have ended, well or not: what failed takes down what hangs on it,
and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Literal

from pipeline.stages.stage import Stage

Work = Literal["data", "train", "evaluate"]  # classes of jobs, one section of the site file each
LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001


@dataclass(frozen=True)
class Task:
    """What one job makes, in this order. `needs` are the keys of stages that must be there before it starts."""

    work: Work
    stages: tuple[Stage, ...]
    needs: frozenset[str]

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(stage.key for stage in self.stages)

    @property
    def name(self) -> str:
        """Readable, and different for different stages."""
        digest = hashlib.sha256(" ".join(sorted(self.keys)).encode()).hexdigest()[:8]
        return f"{self.stages[0].kind}-{self.stages[0].slug}-{digest}"

    @property
    def nodes(self) -> int:
        """Return the number of machines of its training."""
        return (
            max(stage.options.get("compute", {}).get("nodes", 1) for stage in self.stages)
            if self.work == "train"
            else 1
        )


def work_of(stage: Stage) -> Work:
    """Return the class of jobs that makes a stage; merging is done where its result is scored."""
    work = stage.type.resource
    return "evaluate" if work == "score" or work == "merge" else work


def cut(stages: Sequence[Stage], waiting: Collection[str] | None = None) -> tuple[Task, ...]:
    """Return the jobs of a plan, each after those that it needs.

    Only stages whose keys are in `waiting` are made; None: all of them.
    """
    groups: dict[tuple[str, ...], list[Stage]] = {}
    for stage in stages:
        groups.setdefault(_together(stage), []).append(stage)
    tasks = [task for group in groups.values() if (task := _task(group, waiting))]
    maker = {key: task for task in tasks for key in task.keys}
    before = {task: [maker[key] for key in sorted(task.needs) if key in maker] for task in tasks}
    return tuple(TopologicalSorter(before).static_order())


def _task(group: Sequence[Stage], waiting: Collection[str] | None) -> Task | None:
    """Return the job for stages that belong together, without those that need not be made; what it lacks of them, it
    needs from elsewhere.
    """
    kept = [stage for stage in group if waiting is None or stage.key in waiting]
    if not kept:
        return None
    if kept[0].trajectory:
        kept.sort(key=lambda stage: stage.tokens)
    read = {parent.key for stage in kept for parent in stage.parents.values() if not parent.given}
    needs = read | {stage.key for stage in group}
    return Task(work_of(kept[0]), tuple(kept), frozenset(needs - {stage.key for stage in kept}))


def _together(stage: Stage) -> tuple[str, ...]:
    """Return the name of a stage's job.

    No two jobs need one another: a job's stages read only what was computed before all of them.
    """
    work = work_of(stage)
    if work == "data":
        lineage = [stage, *ancestors(stage)]
        corpus = sorted(ancestor.key for ancestor in lineage if ancestor.kind == "corpus")
        trained = sorted(ancestor.key for ancestor in lineage if not ancestor.given and work_of(ancestor) == "train")
        return (work, *corpus, *trained)
    if work == "train":
        return (work, stage.trajectory or stage.key)
    return (work, _decided_by(stage).key)


def _decided_by(stage: Stage) -> Stage:
    """Return the first stage of a scoring job.

    It is the selection of a merge's settings, if it uses this merge's own checkpoints alone; else the merge.
    """
    merge = stage if stage.kind == "merge" else stage.parents.get("merge")
    if merge is None:
        return stage
    tune = merge.parents.get("tune")
    if tune is None:
        return merge
    own = all(tune.parents[role].key == parent.key for role, parent in merge.parents.items() if role != "tune")
    return tune if own else merge


def ancestors(stage: Stage) -> tuple[Stage, ...]:
    """Return all that a stage comes from, each once."""
    each = (ancestor for parent in stage.parents.values() for ancestor in (parent, *ancestors(parent)))
    return tuple({ancestor.key: ancestor for ancestor in each}.values())


def bundles(array: Sequence[Task], size: int) -> tuple[Task, ...]:
    """Pack that many jobs of an array into one."""
    parts = (array[start : start + size] for start in range(0, len(array), size))
    return tuple(
        Task(
            part[0].work,
            tuple(stage for task in part for stage in task.stages),
            frozenset().union(*(task.needs for task in part)),
        )
        for part in parts
    )


def arrays(tasks: Iterable[Task]) -> tuple[tuple[Task, ...], ...]:
    """Group jobs that need the same machines and wait for the same stages: each group is submitted as one array."""
    groups: dict[tuple[object, ...], list[Task]] = {}
    makers: dict[str, str] = {}
    for task in tasks:
        makers |= {key: task.name for key in task.keys}
        waits = frozenset(makers.get(key, key) for key in task.needs)
        groups.setdefault((task.work, task.nodes, waits), []).append(task)
    return tuple(
        tuple(group[start : start + LARGEST_ARRAY])
        for group in groups.values()
        for start in range(0, len(group), LARGEST_ARRAY)
    )
