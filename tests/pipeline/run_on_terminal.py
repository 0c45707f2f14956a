"""A run whose stages are toys, as a program for a terminal: lines of it and of a child, scores, then a wait for Ctrl-C.

`python -m tests.pipeline.run_on_terminal FOLDER`
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import cli, execute
from pipeline.execute import Executor
from pipeline.run import cells, run
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage
from tests.pipeline.report.synthetic import write_scores

CHILD = """
import sys, pathlib
from pipeline.journal import Journal
Journal(pathlib.Path(sys.argv[1])).message(sys.argv[2])
"""


def compute(sweep: Any, plan: RunPlan, executor: Executor, folder: Path) -> None:
    """In place of `compute_cells`: two scored checkpoints, a training that is under way, and nothing after it."""
    execute.PROGRESS_EVERY_S = 0.0
    for stage in [stage for stage in plan.stages if stage.kind == "eval"][:2]:
        executor.maker = lambda kind: lambda job: score(job.out)
        publish(executor, stage)
    training = next(stage for stage in plan.stages if stage.kind == "ct")
    executor.journal.write("started", training, resumed_tokens=0)
    executor._emit(training, "log", tokens=512, of_tokens=2048, loss=2.5, tokens_per_second=1000.0)
    executor.journal.write("message", training, text="a line of its own")
    subprocess.run([sys.executable, "-c", CHILD, str(executor.journal.path), "a line of a child"], check=True)
    executor.journal.message("under way")
    time.sleep(600)  # until Ctrl-C


def publish(executor: Executor, stage: Stage) -> None:
    """Without its parents."""
    executor.materialize = lambda parent, to_read=False: Path()  # type: ignore[method-assign]
    executor._compute(stage)
    executor.store.discard_work(stage)


def score(out: Path) -> None:
    write_scores(out / "scores", {"genre": 0.4}, 2.0)
    for path in (out / "scores").iterdir():
        path.rename(out / path.name)
    (out / "scores").rmdir()


if __name__ == "__main__":
    run.checks.check_plan = lambda plan: []
    cells.compute_cells = compute
    sys.exit(
        cli.pipeline_main(["-m", "experiment=test", f"store={sys.argv[1]}/store", f"outputs={sys.argv[1]}/outputs"])
    )
