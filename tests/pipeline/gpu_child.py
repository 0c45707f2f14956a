"""A child of launcher=gpus whose stages are toys: no device is in use twice, and what they do is steered by files.

`python -m tests.pipeline.gpu_child FOLDER THREADS KEY...`. In the run's folder, `held/` has a file per device, locked
while it is in use. `asked/`, beside the store, has what a test wants: `together` (trainings of SFT and CT wait for one
another), `crash`, `die` (of what the file names), `linger` (CT waits for Ctrl-C and saves).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from common.errors import Interrupted
from pipeline import interruption
from pipeline.execute import Job
from pipeline.run import gpus
from pipeline.stages import STAGE_TYPES

HANGS_AFTER_S = 600.0  # slowness takes less
FOLDER = Path(sys.argv[1])
DEVICES = [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]


def asked(name: str) -> str | None:
    """What a test wants; None: nothing."""
    path = FOLDER.parents[3] / "asked" / name
    return path.read_text() if path.exists() else None


def wait_for(*paths: Path) -> None:
    until = time.monotonic() + HANGS_AFTER_S
    while not all(path.exists() for path in paths):
        if time.monotonic() > until:
            raise TimeoutError(f"{paths} did not come")
        time.sleep(0.01)


def make(job: Job) -> None:
    """Leaves what its kind's readers look at."""
    name = str(job.stage)
    if asked("die") == name:
        os.kill(os.getpid(), signal.SIGKILL)
    if asked("crash") == name:
        raise ZeroDivisionError("of all things")
    if job.stage.type.trained:
        train(job)
    threads = getattr(job.options, "threads", None) or job.stage.compute.threads
    (job.out / "made.json").write_text(json.dumps({"devices": DEVICES, "threads": threads}))
    if job.stage.kind.endswith("blocks"):
        (job.out / "counts.json").write_text(json.dumps({"tokens": 10**9, "blocks": 1, "real_token_share": 1.0}))


def train(job: Job) -> None:
    together = FOLDER / "together"
    if asked("together") is not None and job.stage.kind in ("ct", "sft"):
        together.mkdir(exist_ok=True)
        (together / job.stage.kind).touch()
        wait_for(together / "ct", together / "sft")
    if asked("linger") is not None and job.stage.kind == "ct":
        with interruption.deferred(lambda: job.emit("saving")):
            (FOLDER / "lingers").touch()
            until = time.monotonic() + HANGS_AFTER_S
            while not interruption.requested() and time.monotonic() < until:
                time.sleep(0.01)
            (job.work / "saved").touch()
            raise Interrupted("saved")


def main() -> int:
    held = FOLDER / "held"
    held.mkdir(exist_ok=True)
    in_use = [(held / device).open("a") for device in DEVICES]
    for file in in_use:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if the device is in use; ends with the process
    for kind in STAGE_TYPES.values():
        setattr(sys.modules[kind.run.__module__], kind.run.__name__, make)  # as plans on disk refer to it
    return gpus.main(FOLDER, int(sys.argv[2]), sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
