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

JobClass = Literal["data", "train", "evaluate"]  # classes of jobs, one section of the site file each
LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001


@dataclass(frozen=True)
class Piece:
    """The stages of one job, in their order. needs: keys of stages that must be published before it starts."""

    job_class: JobClass
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
        return max(stage.compute.nodes for stage in self.stages) if self.job_class == "train" else 1


def job_class_of(stage: Stage) -> JobClass:
    """Return the class of jobs that computes a stage; a merge is computed where its result is scored."""
    resource = stage.type.resource
    return "evaluate" if resource == "score" or resource == "merge" else resource


def group_into_pieces(stages: Sequence[Stage], waiting: Collection[str] | None = None) -> tuple[Piece, ...]:
    """Group the stages of a plan into jobs, each after those that it needs.

    waiting: keys of the stages to compute; None: all of them.
    """
    groups: dict[tuple[str, ...], list[Stage]] = {}
    for stage in stages:
        groups.setdefault(_piece_key(stage), []).append(stage)
    pieces = [piece for group in groups.values() if (piece := _piece(group, waiting))]
    maker = {key: piece for piece in pieces for key in piece.keys}
    before = {piece: [maker[key] for key in sorted(piece.needs) if key in maker] for piece in pieces}
    return tuple(TopologicalSorter(before).static_order())


def _piece(group: Sequence[Stage], waiting: Collection[str] | None) -> Piece | None:
    """Return the job for a group of stages, without those that need not be computed: it waits for these."""
    kept = [stage for stage in group if waiting is None or stage.key in waiting]
    if not kept:
        return None
    if kept[0].trajectory:
        kept.sort(key=lambda stage: stage.tokens)
    read = {parent.key for stage in kept for parent in stage.parents.values() if not parent.given}
    needs = read | {stage.key for stage in group}
    return Piece(job_class_of(kept[0]), tuple(kept), frozenset(needs - {stage.key for stage in kept}))


def _piece_key(stage: Stage) -> tuple[str, ...]:
    """Return the name of a stage's job.

    No two jobs need one another: a job's stages read only what was computed before all of them.
    """
    job_class = job_class_of(stage)
    if job_class == "data":
        lineage = [stage, *ancestors(stage)]
        corpus = sorted(ancestor.key for ancestor in lineage if ancestor.kind == "corpus")
        models = (ancestor for ancestor in lineage if not ancestor.given and job_class_of(ancestor) == "train")
        trained = sorted(model.key for model in models)
        return (job_class, *corpus, *trained)
    if job_class == "train":
        return (job_class, stage.trajectory or stage.key)
    return (job_class, _piece_root(stage).key)


def _piece_root(stage: Stage) -> Stage:
    """Return the first stage of a scoring job.

    It is the selection of a merge's settings, if it uses this merge's own checkpoints alone; else the merge.
    """
    merge = stage if stage.kind == "merge" else stage.parents.get("merge")
    if merge is None:
        return stage
    tune = merge.parents.get("tune")
    if tune is None:
        return merge
    same_parents = all(tune.parents[role].key == parent.key for role, parent in merge.parents.items() if role != "tune")
    return tune if same_parents else merge


def ancestors(stage: Stage) -> tuple[Stage, ...]:
    """Return all that a stage comes from, each once."""
    each = (ancestor for parent in stage.parents.values() for ancestor in (parent, *ancestors(parent)))
    return tuple({ancestor.key: ancestor for ancestor in each}.values())


def pack_array(array: Sequence[Piece], size: int) -> tuple[Piece, ...]:
    """Pack that many jobs of an array into one."""
    parts = (array[start : start + size] for start in range(0, len(array), size))
    return tuple(
        Piece(
            part[0].job_class,
            tuple(stage for piece in part for stage in piece.stages),
            frozenset().union(*(piece.needs for piece in part)),
        )
        for part in parts
    )


def arrays(pieces: Iterable[Piece]) -> tuple[tuple[Piece, ...], ...]:
    """Group jobs that need the same machines and wait for the same stages: each group is submitted as one array."""
    groups: dict[tuple[object, ...], list[Piece]] = {}
    makers: dict[str, str] = {}
    for piece in pieces:
        makers |= {key: piece.name for key in piece.keys}
        waits = frozenset(makers.get(key, key) for key in piece.needs)
        groups.setdefault((piece.job_class, piece.nodes, waits), []).append(piece)
    return tuple(
        tuple(group[start : start + LARGEST_ARRAY])
        for group in groups.values()
        for start in range(0, len(group), LARGEST_ARRAY)
    )
