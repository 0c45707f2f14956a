"""Which trainer states are kept. A state (weights, AdamW's two moments, in float32) is six times a bfloat16 checkpoint: about 80 GB at 7 B parameters.

A budget continues from the largest one below it, so a state is kept while a missing budget of the sweep would continue from it; and, where
`compute.keep_last_state` says so, the largest budget's, from which a later sweep can go further. The others are dropped: their folder is removed and
their record says so. A budget that finds no state starts from the largest one that has its own, or from the base model: longer, the same result.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.graph import Stage
from pipeline.store import Store

STATE = "state"


def superfluous(held: Collection[int], missing: Collection[int], keep_last: bool) -> set[int]:
    """Of the budgets of one trajectory whose states are held, those that no missing budget continues from. Budgets are tokens."""
    below = [[budget for budget in held if budget < wanted] for wanted in missing]
    needed = {max(budgets) for budgets in below if budgets}
    if keep_last and held:
        needed.add(max(held))
    return set(held) - needed


def drop_all(store: Store, stages: Sequence[Stage]) -> None:
    """Drops what a sweep, given by its stages, does not need any more: what a crash left over too."""
    for trajectory in sorted({stage.trajectory for stage in stages if stage.trajectory}):
        drop(store, stages, trajectory)


def drop(store: Store, stages: Sequence[Stage], trajectory: str) -> None:
    """Drops the states of one trajectory that the sweep does not need any more."""
    budgets = [stage for stage in stages if stage.trajectory == trajectory]
    missing = [stage.settings["tokens"] for stage in budgets if store.find(stage) is None]
    keep_last = any(stage.options.get("keep_last_state", True) for stage in budgets)
    published = [entry for entry in store.entries("ct") if entry.record.get("trajectory") == trajectory]
    held = {entry.record["settings"]["tokens"]: entry for entry in published if entry.holds(STATE)}
    cut_off = [
        entry for entry in published if not entry.holds(STATE) and (entry.path / STATE).exists()
    ]  # by a crash in the middle of a drop
    for entry in (*cut_off, *(held[tokens] for tokens in superfluous(held.keys(), missing, keep_last))):
        store.drop(entry, STATE)
