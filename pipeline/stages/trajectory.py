"""CT budgets that continue from one another, and which trainer states are kept for that.

A state (weights, AdamW's two moments, in float32) is six times a bfloat16 checkpoint: about 80 GB at 7 B
parameters. A budget continues from the largest one below it, so a state is kept while a missing budget of the sweep
would continue from it; and, where `compute.keep_last_state` says so, the largest budget's, from which a later sweep
can go further. The others are dropped: their folder is removed and their record says so. A budget that finds no
state starts from the largest one that has its own, or from the base model: longer, the same result.

Under a wsd schedule the budgets of a trajectory are the trunks of the sweep's budgets, and a budget's own stage is a
branch: the decay from its trunk, which nothing continues from. A trunk's state is kept while a branch needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.stages.stage import TRUNK, Stage
from pipeline.store import Entry, Store

STATE = "state"


@dataclass(frozen=True)
class Trajectory:
    """The CT stages of a sweep that differ in their budget only, budgets ascending; `digest` is `Stage.trajectory`."""

    digest: str
    stages: tuple[Stage, ...]
    branches: tuple[Stage, ...] = ()  # decays of the sweep that start from one of these stages

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """Return tokens of each stage."""
        return tuple(tokens_of(stage) for stage in self.stages)

    def smaller(self, stage: Stage) -> tuple[Stage, ...]:
        """Return the stages of the sweep below a budget, the smallest first."""
        return tuple(other for other in self.stages if tokens_of(other) < tokens_of(stage))

    def previous(self, stage: Stage) -> Stage | None:
        """Return the stage that a budget continues from, once the sweep's are made; None for the smallest."""
        return self.smaller(stage)[-1] if self.smaller(stage) else None

    def published(self, store: Store) -> list[Entry]:
        """Return the entries of any sweep, budgets ascending."""
        entries = (entry for entry in store.entries("ct") if entry.record.get("trajectory") == self.digest)
        return sorted((entry for entry in entries if "tokens" in entry.record["settings"]), key=budget_of)

    def resumable(self, store: Store, stage: Stage) -> Entry | None:
        """Return the largest published budget below a stage's that has its state still; one that is damaged is passed
        over.
        """
        most = tokens_of(stage.parents[TRUNK]) if TRUNK in stage.parents else tokens_of(stage) - 1
        below = [entry for entry in self.published(store) if budget_of(entry) <= most and entry.has(STATE)]
        return next((entry for entry in reversed(below) if entry.damage(thorough=True) is None), None)

    def droppable(self, store: Store) -> list[Entry]:
        """Return the entries whose states no missing budget continues from; and those cut off by a crash in a drop."""
        missing = [tokens_of(stage) for stage in self.stages if store.find(stage) is None]
        # a branch continues from its trunk itself, which is the largest below one token more
        missing += [tokens_of(stage.parents[TRUNK]) + 1 for stage in self.branches if store.find(stage) is None]
        keep_last = any(stage.options.keep_last_state for stage in self.stages)
        published = self.published(store)
        with_state = {budget_of(entry): entry for entry in published if entry.has(STATE)}
        cut_off = [entry for entry in published if not entry.has(STATE) and (entry.path / STATE).exists()]
        return cut_off + [with_state[tokens] for tokens in prunable_states(with_state.keys(), missing, keep_last)]

    def drop(self, store: Store) -> None:
        """Remove the states that the sweep does not need any more."""
        for entry in self.droppable(store):
            store.drop(entry, STATE)


def trajectories(stages: Iterable[Stage]) -> dict[str, Trajectory]:
    """Return the trajectories of a sweep, by digest."""
    grouped: dict[str, list[Stage]] = {}
    for stage in stages:
        if digest := continues(stage):
            grouped.setdefault(digest, []).append(stage)
    return {digest: _trajectory(digest, sorted(group, key=tokens_of)) for digest, group in grouped.items()}


def _trajectory(digest: str, group: Sequence[Stage]) -> Trajectory:
    budgets = tuple(stage for stage in group if stage.trajectory == digest)
    return Trajectory(digest, budgets, tuple(stage for stage in group if TRUNK in stage.parents))


def continues(stage: Stage) -> str | None:
    """Return the trajectory that a stage continues: its own, or that of the trunk that it branches off from."""
    return stage.parents[TRUNK].trajectory if TRUNK in stage.parents else stage.trajectory


def previous_stages(stages: Sequence[Stage]) -> dict[str, Stage]:
    """Return, by key of a CT stage, the stage of the sweep that it resumes from; the smallest budgets have none."""
    lines = trajectories(stages).values()
    each = ((stage, line.previous(stage)) for line in lines for stage in line.stages)
    branches = {stage.key: stage.parents[TRUNK] for line in lines for stage in line.branches}
    return {stage.key: previous for stage, previous in each if previous} | branches


def drop_all(store: Store, stages: Iterable[Stage]) -> None:
    """Drop what a sweep, given by its stages, does not need any more: what a crash left over too."""
    for _, trajectory in sorted(trajectories(stages).items()):
        trajectory.drop(store)


def prunable_states(with_state: Collection[int], missing: Collection[int], keep_last: bool) -> set[int]:
    """Return the budgets (tokens) of one trajectory that have states from which no missing budget resumes."""
    below = [[budget for budget in with_state if budget < wanted] for wanted in missing]
    needed = {max(budgets) for budgets in below if budgets}
    if keep_last and with_state:
        needed.add(max(with_state))
    return set(with_state) - needed


def tokens_of(stage: Stage) -> int:
    """Return the budget of a CT stage."""
    return stage.tokens


def budget_of(entry: Entry) -> int:
    """Return the budget, in tokens, of a published CT stage."""
    return int(entry.record["settings"]["tokens"])
