"""`python -m pipeline`, on a machine that seems to have two GPUs while it computes on the CPU.

`python -m tests.pipeline.run_on_fake_gpus DEVICES CHILD WORD...`: names of GPUs, by commas; the module that a child
runs; the command line.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

from pipeline import cli
from pipeline.run import gpus, run
from pipeline.sweep import GPUS, Sweep

if __name__ == "__main__":
    devices, gpus.CHILD, *words = sys.argv[1:]
    names = tuple(devices.split(","))

    def choose(sweep: Sweep, compute: Any) -> tuple[Sweep, tuple[str, ...]]:
        return replace(sweep, launcher=GPUS, processes=len(names)), names

    gpus.choose_launcher = choose
    if os.environ.get("SLACKMERGE_TEST_NO_REPORT"):
        run.checks.check_plan = lambda plan: []
        run.write_report = lambda plan, arguments: None
    sys.exit(cli.pipeline_main(words))
