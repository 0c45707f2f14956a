"""The one table of baselines: checkpoints in the results besides the merges, by the names that they have there.

A new baseline is a row here. Light: configs, plans and reports read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.stages.cell import CellPlanner
    from pipeline.stages.stage import Stage


FROZEN = "sft_then_ct_frozen"


@dataclass(frozen=True)
class Baseline:
    """A checkpoint. title: its name for people. plan: returns its stage in a cell.

    ct_budgets: whether a CT budget changes it. sft_as_stated: whether it was trained on instructions with the settings
    in `sft`, which `sft.grid` does not change.
    """

    name: str
    title: str
    plan: Callable[[CellPlanner], Stage]
    ct_budgets: bool = True
    sft_as_stated: bool = True


BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("base", "base", lambda cell: cell.base, ct_budgets=False, sft_as_stated=False),
        Baseline("sft", "SFT", lambda cell: cell.sft, ct_budgets=False),
        Baseline("ct", "CT", lambda cell: cell.ct, sft_as_stated=False),
        Baseline("ct_then_sft", "CT-then-SFT", lambda cell: cell.ct_then_sft, sft_as_stated=False),
        Baseline("sft_then_ct", "SFT-then-CT", lambda cell: cell.sft_then_ct),
        Baseline(FROZEN, "SFT-then-CT with frozen columns", lambda cell: cell.frozen_trials[0]),
        Baseline("mixed", "CT and SFT mixed", lambda cell: cell.mixed),
        Baseline("sft_replay", "CT-then-SFT with replay", lambda cell: cell.sft_with_replay),
        Baseline("merge_then_sft", "merge-then-SFT", lambda cell: cell.merge_then_sft),
        Baseline("target_sft", "target-language SFT (upper bound)", lambda cell: cell.sft_in_language),
    )
}


PAIR = ("ct", "sft")  # checkpoints of a merge, by default
VARIANT = "@"  # between `ct` and the name of a variant
MODEL = "model"  # the role of what task vectors are taken from
NOT_MERGED = (MODEL, "items", "corpus", "merge", "tune")  # roles of other parents of a merge and of what scores one


def merged_roles(roles: Iterable[str]) -> list[str]:
    """Return the roles of the checkpoints that are merged, among the parents of a merge or of what scores one."""
    return [role for role in roles if role.partition("-")[0] not in NOT_MERGED]  # several parents tune: tune-0, ...


def depends_on_ct_budget(names: Iterable[str]) -> bool:
    """Return whether a CT budget changes one of these checkpoints, and so what is made of them."""
    baselines = (BASELINES.get(name.partition(VARIANT)[0]) for name in names)  # None: a checkpoint from outside
    return any(baseline.ct_budgets for baseline in baselines if baseline)
