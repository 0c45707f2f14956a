"""The cells of a sweep on this machine: first what they share, then each by an executor.

This process computes the cells one by one, or Hydra's launcher (joblib, submitit_local ...) starts several processes,
with all that `hydra.launcher` sets. Hydra calls back with a cell's number; the run's plan has the rest. A launcher is a
plugin, found by Hydra's plugin interface. Private in Hydra is one class, as a launcher wants the callbacks of a run and
there is no other way to have some (we configure none): `hydra._internal.callbacks.Callbacks`, of 1.3.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig

from common.errors import BadInput, Interrupted, StageFailed
from common.processes import silence
from common.project import CONF
from pipeline import interruption, journal
from pipeline.config import Config
from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.run_plan import RunPlan
from pipeline.stages.data import check_budget
from pipeline.stages.stage import Stage
from pipeline.sweep import IN_THIS_PROCESS, Sweep
from pipeline.tracking import tracker

LAUNCHERS = (IN_THIS_PROCESS, "joblib", "submitit_local")  # that run cells on this machine
LOG = "messages.log"  # in the folder of a run: warnings of libraries
PARENT_CHECK_S = 0.5
_computing = threading.Lock()  # held while this process of a launcher computes a cell
INTERRUPTED = "interrupted"  # an event of the journal: no further cell begins


def run_executor(
    plan: RunPlan, events: Journal, config: Config | None = None, stages: Sequence[Stage] | None = None, **how: Any
) -> Executor:
    """Return an executor for a process of a run, whose libraries are quiet.

    events: the journal, in the folder of the run. config: of the cell that the process computes, if it is one cell.
    stages: of the sweep, if not all of the plan. how: as `Executor` takes it.
    """
    folder, config = events.path.parent, config or plan.config
    quiet_libraries(config, folder / LOG)
    track = tracker(config, folder.parents[1], events.message)
    return Executor(plan.store, plan.stages if stages is None else stages, events, track=track, **how)


def quiet_libraries(config: Config, log: Path) -> None:
    """Silence libraries on the console: their warnings go to a file.

    Call this before they are imported; child processes inherit it.
    """
    silence()
    if config.compute.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not logging.root.handlers:
        handler = logging.FileHandler(log, encoding="utf-8", delay=True)
        logging.basicConfig(handlers=[handler], level=logging.WARNING)


def compute_cells(sweep: Sweep, plan: RunPlan, executor: Executor, folder: Path) -> None:
    """Compute what is missing of a plan. executor: of this process. folder: of the run, with the saved plan.

    Failures of cells are in the journal. Raises StageFailed, BadInput or Interrupted for what the cells share.
    """
    if sweep.launcher in LAUNCHERS:
        # What cells share, so that their processes do not begin by waiting for one another.
        executor.compute([stage for stage in plan.stages if stage.type.shared], stop_at_failure=True)
        check_budgets(plan)
    if sweep.launcher == IN_THIS_PROCESS:
        for number in range(len(plan.cells)):
            compute_cell(plan, folder, number)
    else:
        launch_cells(sweep, folder)


def check_budgets(plan: RunPlan) -> None:
    """Reject a budget that the packed corpus cannot fill, before anything is trained on it. Raises BadInput."""
    for stage in plan.stages:
        if stage.kind != "ct" or stage.settings.whole_text:
            continue
        if blocks := plan.store.find(stage.parents["blocks"]):
            check_budget(blocks.path, stage.tokens)


def compute_cell(plan: RunPlan, folder: Path, number: int) -> None:
    """Compute a cell of the run in this folder; then what is left of the others, if several processes compute."""
    cell, events = plan.cells[number], Journal(folder / journal.FILE)
    executor = run_executor(plan, events, cell.config)
    try:
        executor.compute(cell.stages)
        if plan.processes > 1:
            executor.failed |= {event["key"] for event in events.events("failed", "refused", "not_run")}
            executor.compute(plan.stages)
    except Interrupted:  # the journal has it
        return


# --- Hydra's launchers


def launch_cells(sweep: Sweep, folder: Path) -> None:
    """Return when every cell was tried. Raises StageFailed if a process was lost."""
    settings = (
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir='{folder}'",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",  # the plan in the folder has the composed configs
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
    )
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="pipeline"):
        try:
            config = compose("config", [*sweep.common, *settings], return_hydra_config=True)
            context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=partial(_compute_cell, folder, os.getpid()), config=config
            )
        except HydraException as error:
            raise BadInput(f"launcher={sweep.launcher}: {' '.join(str(error).split())}") from None
        try:
            with interruption.deferred(partial(_interrupt, folder)):
                ended = launcher.launch([list(cell) for cell in sweep.overrides], initial_job_idx=0)
        except Exception as error:  # whatever a launcher raises where one of its processes was killed
            if interruption.requested():
                raise KeyboardInterrupt from error
            message = f"launcher={sweep.launcher}: a process was lost: {type(error).__name__}: {error}"
            raise StageFailed(" ".join(message.split())) from error
    for job in ended:
        job.return_value  # noqa: B018  # raises what no stage explains, with its traceback


def _compute_cell(folder: Path, launching: int, composed: DictConfig) -> None:
    """Compute a cell in a process of the launcher. The composed config is not read: the plan has the cell's config.

    launching: the id of the process that started the launcher.
    """
    number = HydraConfig.get().job.num
    if threading.current_thread() is not threading.main_thread():
        compute_cell(RunPlan.load(folder), folder, number)
        return
    interruption.listen()
    if os.getppid() == launching:  # joblib; processes of other launchers outlive it
        _end_without(launching, folder)
    try:
        with _computing:
            if not Journal(folder / journal.FILE).events(INTERRUPTED):
                compute_cell(RunPlan.load(folder), folder, number)
    except KeyboardInterrupt:
        pass  # the parent process reports it when all have saved
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an idle process that ends would take the others down


@cache
def _end_without(parent: int, folder: Path) -> None:
    """Once the parent process is gone, however it ended, save and end as after Ctrl-C.

    Else joblib's processes would continue, though nobody waits for them.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        Journal(folder / journal.FILE).write(INTERRUPTED)
        os.kill(os.getpid(), signal.SIGINT)
        with _computing:
            os._exit(1)  # else it would wait for a further cell

    threading.Thread(target=watch, daemon=True).start()


def _interrupt(folder: Path) -> None:
    """Let the launcher's processes save and end, and start no further cell."""
    Journal(folder / journal.FILE).write(INTERRUPTED)
    for process in multiprocessing.active_children():
        if process.pid:
            os.kill(process.pid, signal.SIGINT)
