"""The one table of arms that train: checkpoints that stand in results beside the merges, by the names they have there.

How each comes to be is in pipeline/plan_arms.py. Pure and light: configs, plans and reports read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """A checkpoint. title: its name for people. ct_budgets: whether a CT budget changes it.

    sft_as_stated: whether it was trained on instructions with the settings in `sft`, which `sft.grid` does not change.
    """

    name: str
    title: str
    ct_budgets: bool = True
    sft_as_stated: bool = True


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("base", "base", ct_budgets=False, sft_as_stated=False),
        Arm("sft", "SFT", ct_budgets=False),
        Arm("ct", "CT", sft_as_stated=False),
        Arm("ct_then_sft", "CT-then-SFT", sft_as_stated=False),
        Arm("sft_then_ct", "SFT-then-CT"),
        Arm("mixed", "CT and SFT mixed"),
        Arm("sft_replay", "CT-then-SFT with replay"),
        Arm("merge_then_sft", "merge-then-SFT"),
        Arm("target_sft", "target-language SFT (upper bound)"),  # what instructions in the language itself would give
    )
}


PAIR = ("ct", "sft")  # checkpoints of a merge, by default


def with_ct_budgets(names: Iterable[str]) -> bool:
    """Return whether a CT budget changes one of these checkpoints, and so what is made of them."""
    return any(ARMS[name].ct_budgets for name in names)
