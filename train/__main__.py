"""`python -m train JOB.json`: one process of a training.

The launcher (pipeline/run/launch.py, or torchrun by hand) starts as many as there shall be. JOB.json holds the
arguments of `train.trainer.train`: {"model", "blocks", "settings", "out", "work", "save_every_tokens", "resume_state",
"compute"}. Rank 0 prints the training's log, a JSON object a line, and leaves what became of it in RESULT_FILE beside
JOB.json.

On SIGINT, SIGTERM, SIGUSR2 or a file STOP_FILE beside JOB.json, every process finishes the step, saves, and exits with
75; the same call goes on from there. Exit code 2: refused, in one line.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import BadInput, Interrupted
from common.files import write_json

INTERRUPTED = 75  # the exit code of a training that was asked to stop and has saved; sysexits.h: try again later
# prctl(PR_SET_PDEATHSIG, SIGKILL): a process ends when what started it dies, however it dies. Nobody would hold the
# claim on what it writes.
DIE_WITH_PARENT = (1, signal.SIGKILL, 0, 0, 0)
RESULT_FILE, STOP_FILE = "result.json", "stop"


def main(job: Path) -> int:
    """Runs this process's part of the training."""
    ctypes.CDLL(None).prctl(*DIE_WITH_PARENT)
    from train import trainer
    from train.parallel import Compute
    from train.stage_settings import TrainingSettings

    arguments = json.loads(job.read_text(encoding="utf-8"))
    first = os.environ.get("RANK", "0") == "0"

    def leave(result: dict[str, Any]) -> None:
        if first:
            write_json(job.with_name(RESULT_FILE), result)

    try:
        facts = trainer.train(
            Path(arguments["model"]),
            Path(arguments["blocks"]),
            TrainingSettings.from_mapping(arguments["settings"]),
            Path(arguments["out"]),
            work=Path(arguments["work"]),
            save_every_tokens=arguments.get("save_every_tokens"),
            resume_state=Path(arguments["resume_state"]) if arguments.get("resume_state") else None,
            compute=Compute(**arguments.get("compute", {})),
            on_log=lambda record: print(json.dumps(record), flush=True),
            should_stop=stop_signal(job.with_name(STOP_FILE)),
        )
    except Interrupted as stop:
        leave({"interrupted": str(stop)})
        return INTERRUPTED
    except BadInput as error:
        leave({"refused": str(error)})
        print(error, file=sys.stderr)
        return 2
    leave({"launch": facts})
    return 0


def stop_signal(file: Path) -> Callable[[], bool]:
    """Asks whether this process was told to stop.

    By SIGINT, SIGTERM or SIGUSR2, or by a file, as launchers do not pass on every signal.
    """
    told: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, frame: told.append(received))
    looks = os.environ.get("LOCAL_RANK", "0") == "0"
    return lambda: bool(told) or (looks and file.exists())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m train JOB.json")
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.exit(code)
