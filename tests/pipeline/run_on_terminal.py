"""A run whose stages are toys, as a program for a terminal: says lines, here and in a child, scores, waits for Ctrl-C.

`python -m tests.pipeline.run_on_terminal FOLDER`
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import __main__ as entry
from pipeline.run import console, sweep_run
from pipeline.run.worker import Worker
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage
from tests.pipeline.report.synthetic import write_scores
from tests.pipeline.toy_stage import toy_stage

CHILD = "from pipeline.run.console import say; say('a line of a child')"


def make(sweep: Any, plan: RunPlan, here: Worker, folder: Path) -> None:
    """In place of `local.make`: two scored checkpoints, a training that is under way, and nothing after it."""
    console.UPDATE_EVERY_S = 0.0
    for stage in [stage for stage in plan.stages if stage.kind == "eval"][:2]:
        here.maker = lambda kind: lambda job: score(job.out)
        publish(here, stage)
    training = next(stage for stage in plan.stages if stage.kind == "ct")
    here.journal.write("started", training, resumed_tokens=0)
    here._log(training, {"tokens": 512, "of_tokens": 2048, "loss": 2.5, "tokens_per_second": 1000.0})
    here.progress.say(training, "a line of its own")
    subprocess.run([sys.executable, "-c", CHILD], check=True)
    print("under way", flush=True)
    time.sleep(600)


def publish(here: Worker, stage: Stage) -> None:
    """Without its parents."""
    alone = toy_stage(stage.kind, stage.slug, stage.settings, stage.parents, stage.options)
    here.ensure = lambda parent, to_read=False: Path()  # type: ignore[method-assign]
    here._make(alone)
    here.store.discard_work(alone)


def score(out: Path) -> None:
    write_scores(out / "scores", {"genre": 0.4}, 2.0)
    for path in (out / "scores").iterdir():
        path.rename(out / path.name)
    (out / "scores").rmdir()


if __name__ == "__main__":
    sweep_run.check = lambda sweep: 0
    sweep_run.local.make = make
    sys.exit(entry.main(["-m", "experiment=test", f"store={sys.argv[1]}/store", f"outputs={sys.argv[1]}/outputs"]))
