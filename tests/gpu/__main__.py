"""`make gpu`: what has to be true on a GPU, as one script of about ten minutes; prints one JSON line per step.

    python -m tests.gpu [--device cuda|cpu] [--quick] [--only STEP ...] [--timeout SECONDS]

Each step runs in its own process, so that one that crashes or hangs stops no other. A line is {"step", "status",
numbers, "seconds"}; "status" is passed, failed or skipped, and "reason" names what failed or what is missing. The last
line is the summary. The exit code is 1 if a step failed. On a CPU the steps run that need no GPU, in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.gpu.steps import QUICK, STEPS

ROOT = Path(__file__).parents[2]
TIMEOUT = 600.0  # seconds of one step
LONGEST = 300  # characters of a reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and print their lines."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where the steps run (default: cuda)")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), help="only these steps")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help=f"seconds of one step (default: {TIMEOUT:.0f})")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that `run` ends its step
    names = options.only or (QUICK if options.quick else list(STEPS))
    lines = []
    with tempfile.TemporaryDirectory(prefix="slackmerge-gpu-") as folder:
        for name in names:
            lines.append(run(name, options.device, Path(folder), options.timeout))
            print(json.dumps(lines[-1]), flush=True)
    counts = {status: sum(line["status"] == status for line in lines) for status in ("passed", "failed", "skipped")}
    seconds = round(sum(line["seconds"] for line in lines), 1)
    print(json.dumps({"step": "summary", "device": options.device, **counts, "seconds": seconds}), flush=True)
    return 1 if counts["failed"] else 0


def run(name: str, device: str, folder: Path, timeout: float) -> dict[str, Any]:
    """The line of one step, which runs in its own process and process group."""
    started, out = time.monotonic(), folder / f"{name}.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    if device == "cpu":  # idle OpenMP threads that spin slow several processes down
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.gpu.steps", name, device, str(folder), str(out)]
    with (folder / f"{name}.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
        log.seek(0)
        last = next((line.strip() for line in reversed(log.read().splitlines()) if line.strip()), "no output")
    found: dict[str, Any]
    if code is None:
        found = {
            "status": "failed",
            "reason": f"no result after {timeout:g} seconds; its last output: {last[:LONGEST]}",
        }
    elif out.is_file():
        found = json.loads(out.read_text(encoding="utf-8"))
    else:
        found = {"status": "failed", "reason": f"ended with exit code {code}; its last output: {last[:LONGEST]}"}
    return {"step": name, **found, "seconds": round(time.monotonic() - started, 1)}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a step's process and all that it started: they are one process group."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
