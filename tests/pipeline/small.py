"""A small sweep and a small Slurm site, for several tests."""

from __future__ import annotations

from pathlib import Path

from pipeline import sweep
from pipeline.run.cluster import site as sites
from pipeline.stages.cell import merged, plan_cell
from pipeline.stages.stage import Inputs, Stage

CLASS = "{gpus: 0, cpus: 1, memory_gb: 2, hours: 1}"
SITE = f"train: {CLASS}\nevaluate: {CLASS}\ndata: {CLASS}\n"


def stages(*overrides: str) -> tuple[Stage, ...]:
    """The plan of a small sweep."""
    configs = sweep.expand(["experiment=test", *overrides], multirun=True).configs
    return merged(plan_cell(config, Inputs()) for config in configs)


def site(folder: Path, more: str = "") -> sites.Site:
    """A site of this text at its end, read from a file in the folder."""
    (folder / "site.yaml").write_text(SITE + "poll_seconds: 0.01\nsettle_seconds: 0\n" + more)
    return sites.read(str(folder / "site.yaml"))
