"""Merges that are killed at random moments: `python -m tests.merge.kill_run FOLDER COUNT`. Started by test_kills.py.

FOLDER has merge.yml. Each merge is a fork of this process, which has imported torch once; a third each is ended by
SIGKILL, SIGTERM and SIGHUP. Prints what was left, as JSON. It has one thread, so that a fork is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

import merge.auditing
import merge.output.writer  # noqa: F401  what the command line imports when it is needed: once, before the forks
from merge.cli import main
from merge.output.out_folder import LAST


def start(folder: Path, out: str) -> int:
    """A merge in a process of its own."""
    child = os.fork()
    if child == 0:
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
        os._exit(main([str(folder / "merge.yml"), str(folder / out), "--shard-size", "20kB"]))
    return child


def whole(out: Path) -> str | None:
    """The checksum of a result's weights, None where there is no result."""
    if not out.exists() or not any(path for path in out.iterdir() if not path.name.startswith(".")):
        return None
    names = sorted(path for path in out.iterdir() if path.suffix == ".safetensors")
    assert (out / "config.json").is_file() and (out / "README.md").is_file() and not list(out.glob(".*")), out
    return hashlib.sha256(b"".join(path.read_bytes() for path in names)).hexdigest()


def kills(folder: Path, count: int) -> dict[str, object]:
    """Kill `count` merges, alternately into a new folder and into an empty one that is there; count what they leave."""
    times = []
    for name in ("reference", "again"):  # the shorter one is less of what else this machine does
        begun = time.monotonic()
        assert os.waitpid(start(folder, name), 0)[1] == 0
        times.append(time.monotonic() - begun)
    lasts = min(times)
    reference = whole(folder / "reference")
    given = {path.name for path in folder.iterdir()}
    seen: Counter[str] = Counter()
    draw = random.Random(0)
    for i in range(count):
        number = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)[i % 3]
        out = folder / "out"
        if i % 2:
            out.mkdir(exist_ok=True)
        child = start(folder, "out")
        time.sleep(draw.uniform(0, 1.1 * lasts))
        os.kill(child, number)
        status = os.waitpid(child, 0)[1]
        seen["finished" if status == 0 else number.name] += 1
        hidden = [path for path in (*folder.glob(".*"), *out.glob(".*"))]
        if number != signal.SIGKILL and status != 0 and os.WIFEXITED(status):
            assert not hidden, (number, hidden)
        seen["leftovers after SIGKILL"] += bool(hidden)
        if hidden:  # the next merge clears up; if the result was published already, that merge is rejected
            published = (out / LAST).is_file()
            status = os.waitpid(start(folder, "out"), 0)[1]
            assert os.waitstatus_to_exitcode(status) == (2 if published else 0), (number, hidden)
            assert not [*folder.glob(".*"), *out.glob(".*")], (number, hidden)
        assert whole(out) in (None, reference)
        for path in (*out.glob("*"), *([out] if out.exists() else [])):
            path.rmdir() if path.is_dir() else path.unlink()
        assert {path.name for path in folder.iterdir()} == given, i
    return dict(seen)


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, by merges too
    print(json.dumps(kills(Path(sys.argv[1]), int(sys.argv[2]))))
