"""Cells in processes of Hydra's launchers (joblib, submitit_local ...), with all that `hydra.launcher` sets.

Hydra starts the processes and calls back with a cell's number: what is made there, the run's plan says. A launcher is
a plugin, asked for by Hydra's plugin interface. Private in Hydra is one class, as a launcher wants the callbacks of a
run and there is no other way to have some (we configure none): `hydra._internal.callbacks.Callbacks`, of 1.3.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig

from common.errors import BadInput, StageFailed
from common.project import CONF
from pipeline import interruption
from pipeline.journal import Journal
from pipeline.run.worker import JOURNAL, make_cell
from pipeline.sweep import Sweep

INTERRUPTED = "interrupted"  # an event of the journal: no further cell begins


def start(sweep: Sweep, folder: Path) -> None:
    """Return when every cell was tried. Raises StageFailed if a process was lost."""
    ours = (
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir='{folder}'",
        "hydra.sweep.subdir=.",
        "hydra.output_subdir=null",  # the plan in the folder has the composed configs
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
    )
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="pipeline"):
        try:
            config = compose("config", [*sweep.common, *ours], return_hydra_config=True)
            context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=partial(_make_cell, folder), config=config
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


def _make_cell(folder: Path, composed: DictConfig) -> None:
    """Compute a cell in a process of the launcher. The composed config is not read: the plan has the cell's config."""
    if threading.current_thread() is not threading.main_thread():
        make_cell(folder, HydraConfig.get().job.num)
        return
    interruption.listen()
    try:
        if not Journal(folder / JOURNAL).events(INTERRUPTED):
            make_cell(folder, HydraConfig.get().job.num)
    except KeyboardInterrupt:
        pass  # the parent process reports it when all have saved
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an idle process that ends would take the others down


def _interrupt(folder: Path) -> None:
    """Let the launcher's processes save and end, and start no further cell."""
    Journal(folder / JOURNAL).write(INTERRUPTED)
    for process in multiprocessing.active_children():
        if process.pid:
            os.kill(process.pid, signal.SIGINT)
