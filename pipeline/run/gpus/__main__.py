"""`python -m pipeline.run.gpus FOLDER THREADS KEY...`: a child process that computes one piece of a run
(children.py).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from common.errors import BadInput, Interrupted
from common.processes import die_with_parent
from pipeline import interruption
from pipeline.execute import Job, Maker
from pipeline.journal import Journal
from pipeline.run.console import say
from pipeline.run.worker import JOURNAL, worker
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage


def main(folder: Path, threads: int, keys: list[str]) -> int:
    """Make the stages of these keys, in their order. What fails is an event of the run's journal.

    threads: at most so many of a CPU. Returns the exit code: 0 also if a stage failed and the journal has it.
    """
    die_with_parent()
    interruption.listen()
    try:
        plan = RunPlan.load(folder)
        maker = worker(plan, Journal(folder / JOURNAL), plan.config_of(keys[0]), assigned=keys, waits=True)
        make = maker.maker
        maker.maker = lambda kind: bounded(make(kind), threads)
        maker.make([plan.by_key[key] for key in keys])
    except Interrupted as stopped:  # the journal has it
        say(str(stopped))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the parent ends the command with one line
        return 130
    return 0


def bounded(make: Maker, threads: int) -> Maker:
    """Return a maker that uses at most so many threads, whatever `compute.threads` allows to a process that runs
    alone.
    """

    def bounded_make(job: Job) -> None:
        job.stage = with_threads(job.stage, threads)
        make(job)

    return bounded_make


def with_threads(stage: Stage, most: int) -> Stage:
    """Return the stage with at most so many threads among its options, which are no part of its key."""
    options = dict(stage.options)
    if "threads" in options:
        options["threads"] = min(options["threads"], most)
    if "threads" in options.get("compute", {}):
        options["compute"] = {**options["compute"], "threads": min(options["compute"]["threads"], most)}
    return replace(stage, options=options)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
