"""The one table of arms that train: checkpoints that stand in results beside the merges, by the names they have there.

How each comes to be is in pipeline/stages/cell.py. Pure and light: configs, plans and reports read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Baseline:
    """A checkpoint. title: its name for people. ct_budgets: whether a CT budget changes it.

    sft_as_stated: whether it was trained on instructions with the settings in `sft`, which `sft.grid` does not change.
    """

    name: str
    title: str
    ct_budgets: bool = True
    sft_as_stated: bool = True


BASELINES: dict[str, Baseline] = {
    arm.name: arm
    for arm in (
        Baseline("base", "base", ct_budgets=False, sft_as_stated=False),
        Baseline("sft", "SFT", ct_budgets=False),
        Baseline("ct", "CT", sft_as_stated=False),
        Baseline("ct_then_sft", "CT-then-SFT", sft_as_stated=False),
        Baseline("sft_then_ct", "SFT-then-CT"),
        Baseline("mixed", "CT and SFT mixed"),
        Baseline("sft_replay", "CT-then-SFT with replay"),
        Baseline("merge_then_sft", "merge-then-SFT"),
        Baseline(
            "target_sft", "target-language SFT (upper bound)"
        ),  # what instructions in the language itself would give
    )
}


PAIR = ("ct", "sft")  # checkpoints of a merge, by default


def depends_on_ct_budget(names: Iterable[str]) -> bool:
    """Return whether a CT budget changes one of these checkpoints, and so what is made of them."""
    return any(BASELINES[name].ct_budgets for name in names)
