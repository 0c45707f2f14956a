"""The cells of a sweep on this machine: first what they share, then each by a worker.

This process computes the cells one by one, or Hydra's launcher starts several processes (hydra_launcher.py).
"""

from __future__ import annotations

from pathlib import Path

from pipeline.run.worker import Worker, make_cell
from pipeline.run_plan import RunPlan
from pipeline.stages.data import check_budget
from pipeline.sweep import IN_THIS_PROCESS, Sweep

LAUNCHERS = (IN_THIS_PROCESS, "joblib", "submitit_local")  # that run cells on this machine


def make(sweep: Sweep, plan: RunPlan, here: Worker, folder: Path) -> None:
    """Make what is missing. `here`: this process's worker; `folder`: the run's, where the plan lies.

    What fails of a cell stands in the journal. Raises StageFailed, BadInput or Interrupted for what the cells share.
    """
    if sweep.launcher in LAUNCHERS:
        # What cells share, so that their processes do not begin by waiting for one another.
        here.run([stage for stage in plan.stages if stage.type.shared])
        check_budgets(plan)
    if sweep.launcher == IN_THIS_PROCESS:
        for number in range(len(plan.cells)):
            make_cell(folder, number)
    else:
        from pipeline.run import hydra_launcher

        hydra_launcher.start(sweep, folder)


def check_budgets(plan: RunPlan) -> None:
    """Reject a budget that the packed corpus cannot fill, before anything is trained on it."""
    store = plan.store
    for stage in plan.stages:
        if stage.kind != "ct" or stage.settings["tokens"] is None:
            continue
        if blocks := store.find(stage.parents["blocks"]):
            check_budget(blocks.path, stage.tokens)
