"""The plan of a run: its cells and their stages, planned once, passed on, and saved in the run's folder for its
workers.
"""

from __future__ import annotations

import os
import pickle
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from common.errors import BadInput
from common.files import foreign_owner, write_json
from pipeline import inputs
from pipeline.config import Config
from pipeline.stages.cell import Cell, merged, plan_cell
from pipeline.stages.stage import Stage
from pipeline.store import Store
from pipeline.sweep import Sweep

FILE = "plan.pickle"
FORMAT = b"slackmerge plan 3\n"  # the first line of the file; raise the number when what follows is read differently


@dataclass(frozen=True)
class RunPlan:
    """The cells of a sweep; their external inputs are checked."""

    cells: tuple[Cell, ...]
    processes: int = 1  # that share the work, for estimates of time
    arguments: tuple[str, ...] = ("run",)  # of the command line that it was planned for; the page shows them

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of all cells, each once, in the order in which the cells run."""
        return merged(self.cells)

    @cached_property
    def by_key(self) -> Mapping[str, Stage]:
        return {stage.key: stage for stage in self.stages}

    @cached_property
    def reports(self) -> Mapping[tuple[str | None, str], Sequence[Cell]]:
        """Return the cells of each report: of a regime and language."""
        reports: dict[tuple[str | None, str], list[Cell]] = {}
        for cell in self.cells:
            reports.setdefault(cell.config.report, []).append(cell)
        return reports

    @property
    def config(self) -> Config:
        """Return the first cell's: what all cells share (store, outputs, name, compute) is read from it."""
        return self.cells[0].config

    @cached_property
    def store(self) -> Store:
        return Store(Path(self.config.store))

    @property
    def outputs(self) -> Path:
        """Return the folder of the experiment's report and runs."""
        return Path(self.config.outputs) / self.config.name

    def missing(self) -> list[Stage]:
        """Return the stages that have no entry in the store, or a damaged one."""
        return [stage for stage in self.stages if self.is_missing(stage)]

    def is_missing(self, stage: Stage) -> bool:
        """Return whether a stage has no entry in the store, or a damaged one."""
        return (entry := self.store.find(stage)) is None or entry.damage(thorough=False) is not None

    def cell_of(self, key: str) -> Cell:
        """Return the first cell that has this stage; what many cells share is the first one's."""
        return next(cell for cell in self.cells if any(stage.key == key for stage in cell.stages))

    def new_folder(self) -> Path:
        """Return a new name for the folder of one run: its plan, journal and logs."""
        return self.outputs.absolute() / "runs" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{os.getpid()}"

    def save(self, folder: Path) -> None:
        """Write the plan for every process of the run, on this machine or in a job; and the configs, for people."""
        folder.mkdir(parents=True, exist_ok=True)
        # whatever the umask: `load` takes none that others may write
        with open(folder / FILE, "wb", opener=lambda path, flags: os.open(path, flags, 0o644)) as file:
            file.write(FORMAT)
            pickle.dump((self.cells, self.processes, self.arguments), file)
        write_json(folder / "configs.json", {str(cell): cell.config.model_dump() for cell in self.cells})

    @staticmethod
    def load(folder: Path) -> RunPlan:
        """Return the plan that `save` left in a run's folder.

        Raises BadInput if others may have written it, as what is in a pickle is run; and if another version of
        slackmerge wrote it.
        """
        path = folder / FILE
        with path.open("rb") as file:
            wrong = foreign_owner(file.fileno()) or foreign_owner(folder)
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & (stat.S_IWGRP | stat.S_IWOTH):
                wrong = wrong or f"other users may write it (mode {mode:o}; run `chmod go-w` if you trust its content)"
            if wrong:
                raise BadInput(f"{path}: {wrong}, and loading a plan can run code. Use a run of your own.")
            other_version = BadInput(
                f"{path}: another version of slackmerge wrote this plan. "
                "Start the run again with this version: finished stages are kept."
            )
            if file.readline(len(FORMAT)) != FORMAT:
                raise other_version
            try:
                return RunPlan(*pickle.load(file))
            except (AttributeError, ImportError, TypeError):  # a class that was moved or changed
                raise other_version from None


def plan_for_checks(configs: Sequence[Config]) -> tuple[RunPlan, list[str]]:
    """Plan the cells of a sweep without the network; return the plan, and why the inputs of cells were rejected.

    A cell whose inputs were rejected has no stages.
    """
    cells, rejections = [], []
    for config in configs:
        try:
            cells.append(plan_cell(config, inputs.inputs(config, network=False)))
        except BadInput as error:
            cells.append(without_stages(config))
            rejections.append(str(error))
    return RunPlan(tuple(cells)), rejections


def without_stages(config: Config) -> Cell:
    """Return the cell of a config whose stages are not known."""
    return Cell(
        config=config,
        stages=(),
        variants={name: without_stages(variant) for name, variant in config.variant_configs.items()},
    )


def plan(sweep: Sweep, network: bool = True) -> RunPlan:
    """Plan the cells of a sweep. network: whether the Hub may be queried. Raises BadInput."""
    return plan_configs(sweep.configs, network, sweep.processes)


def plan_configs(configs: Sequence[Config], network: bool, processes: int = 1) -> RunPlan:
    """Check the inputs of each cell, and plan it. Raises BadInput that names the key."""
    return RunPlan(tuple(plan_cell(config, inputs.inputs(config, network)) for config in configs), processes)
