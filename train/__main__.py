"""`python -m train JOB.json`: one process of a training.

The launcher (pipeline/run/launch.py, or torchrun by hand) starts the processes. Rank 0 prints the training's log, one
JSON object per line, and writes the outcome to RESULT_FILE next to JOB.json.

On SIGINT, SIGTERM, SIGUSR2 or a file STOP_FILE next to JOB.json, every process finishes the step, saves, and exits with
75; the same call resumes from there. Exit code 2: bad input, with a one-line error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput, Interrupted
from common.files import write_json
from common.processes import die_with_parent
from common.validation import read_json
from train.dev_text import DevEvaluation
from train.memory_saving import leave_package_out
from train.settings import Compute, TrainingSettings

INTERRUPTED = 75  # the exit code of a training that was asked to stop and has saved; sysexits.h: try again later
RESULT_FILE, STOP_FILE = "result.json", "stop"


class Job(TypedDict):
    """The content of JOB.json: the arguments of `train.trainer.train`."""

    model: str
    blocks: str
    settings: TrainingSettings
    out: str
    work: str
    save_every_tokens: NotRequired[int | None]
    resume_state: NotRequired[str | None]
    compute: NotRequired[Compute]
    watched: NotRequired[DevEvaluation | None]
    calibration: NotRequired[str | None]


KEYS = ", ".join(Job.__annotations__)


def main(arguments: Sequence[str] | None = None, *, is_own_process: bool = False) -> int:
    """Run this process's part of a training. is_own_process: nothing else runs in it, so packages may be left out."""
    path = job_file(arguments)
    if isinstance(path, int):
        return path
    try:
        job = read_json(path, Job, f"JSON of {KEYS}")
        if is_own_process:
            leave_package_out(job["settings"], Path(job["model"]))
        facts = run(job, path.with_name(STOP_FILE))
    except Interrupted as stop:
        write_result(path, {"interrupted": str(stop)})
        return INTERRUPTED
    except BadInput as error:
        if path.is_file():
            write_result(path, {"refused": str(error)})
        print(error, file=sys.stderr)
        return 2
    write_result(path, {"launch": facts})
    return 0


def job_file(arguments: Sequence[str] | None) -> Path | int:
    """Return the path of JOB.json, or the exit code after printing the help or the error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if len(words) == 1 and not words[0].startswith("-"):
        return Path(words[0])  # from a launcher: without click, a training starts earlier
    import click

    from common.command_line import Command, parse_command_line

    command = Command(
        "train",
        "Compute one process of a training.",
        f"JOB is a JSON file of {KEYS}: the arguments of train.trainer.train.",
        ("job.json",),
        [click.Argument(["job"], type=click.Path(path_type=Path))],
    )
    given = parse_command_line(command, words, "python -m train")
    return given if isinstance(given, int) else Path(given.job)


def write_result(job: Path, result: dict[str, Any]) -> None:
    """Write the outcome of the training next to JOB.json; only the first process does."""
    if os.environ.get("RANK", "0") == "0":
        write_json(job.with_name(RESULT_FILE), result)


def run(job: Job, stop_file: Path) -> dict[str, Any]:
    """Call `train.trainer.train` with the job's arguments."""
    die_with_parent()
    from train import trainer

    resume_state, calibration = job.get("resume_state"), job.get("calibration")
    return trainer.train(
        Path(job["model"]),
        Path(job["blocks"]),
        job["settings"],
        Path(job["out"]),
        work=Path(job["work"]),
        save_every_tokens=job.get("save_every_tokens"),
        resume_state=Path(resume_state) if resume_state else None,
        compute=job.get("compute", Compute()),
        on_log=lambda record: print(json.dumps(record), flush=True),
        should_stop=stop_signal(stop_file),
        watched=job.get("watched"),
        calibration_dir=Path(calibration) if calibration else None,
    )


def stop_signal(file: Path) -> Callable[[], bool]:
    """Return whether this process was asked to stop.

    It is asked by SIGINT, SIGTERM or SIGUSR2, or by a file, as launchers do not pass on every signal.
    """
    told: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, frame: told.append(received))
    looks = os.environ.get("LOCAL_RANK", "0") == "0"
    return lambda: bool(told) or (looks and file.exists())


if __name__ == "__main__":
    code = main(is_own_process=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written: threads of gloo or DeepSpeed may abort a process that ends in Python's own way
