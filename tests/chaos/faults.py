"""What can happen to a machine: bits that flip, a full disk, a store that cannot be written, a clock that jumps,
signals.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.store import RECORD, Store
from tests.chaos.sweeps import Running, finished

if TYPE_CHECKING:
    from tests.chaos.__main__ import Chaos

DISK_BYTES = 420 * 10**6  # a sweep is refused where fewer than 200 MB are free
DAY_S = 86_400


class NotHere(RuntimeError):
    """What cannot be tried on this machine: one line that says why."""


def flip(store: Path, wanted: int, draw: random.Random) -> set[str]:
    """Flips a bit of a file of each of several entries, at most one an entry; the names `kind-entry`."""
    entries = [entry for kind in Store(store).kinds() for entry in Store(store).entries(kind)]
    chosen = draw.sample(entries, min(wanted, len(entries)))
    for entry in chosen:
        files = [name for name, about in entry.record["files"].items() if about["bytes"]]
        path = entry.path / draw.choice(sorted(files) or [RECORD])
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    return {f"{entry.path.parent.name}-{entry.path.name}" for entry in chosen}


def disk(chaos: Chaos) -> None:
    """The disk fills up while the sweep runs: one line and exit code 2; with room again it ends as ever."""
    folder = chaos.place("full")
    with mounted(folder, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"):
        for attempt in range(4):
            sweep = Running(folder)
            sweep.ended(chaos.random.uniform(0.5, chaos.seconds / 2))
            room = chaos.random.randrange(2 * 10**6)
            filler = folder / "filler"
            with filler.open("wb") as file, contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - room)
            code = sweep.end()
            filler.unlink()
            refused = code == 2 and "free some" in sweep.said  # before it began, on the way, or in the report
            if code and (not refused or "Traceback" in sweep.said):
                chaos.complain(f"full disk {attempt}", f"exit code {code}: {sweep.said[-1500:]}")
            if not code:
                break
        chaos.judge(folder, "full disk", finished(folder), again=True)


def readonly(chaos: Chaos) -> None:
    """A store that cannot be written: all that is done is read; what is missing is refused in a line."""
    folder = chaos.place("readonly")
    shutil.copytree(chaos.folder / "undisturbed" / "store", folder / "store")
    missing = next(Store(folder / "store").entries("eval")).path
    with mounted(folder / "store", "--bind", str(folder / "store")):
        remount("ro", folder / "store")
        chaos.judge(folder, "read-only store", finished(folder))
        remount("rw", folder / "store")
        shutil.move(missing, folder / "missing")
        remount("ro", folder / "store")
        sweep = finished(folder, "b")
        if sweep.code != 2 or "Traceback" in sweep.said:
            chaos.complain("read-only store", f"exit code {sweep.code}: {sweep.said[-1500:]}")
        remount("rw", folder / "store")
        chaos.judge(folder, "store that can be written again", finished(folder), again=True)


def clock(chaos: Chaos) -> None:
    """A clock that jumps by up to ten days at each look, and files that are older or newer than now."""
    folder = chaos.place("clock")
    draw = chaos.random
    first = Running(folder, prepare=lambda: jumping(draw.random()))
    if not first.ended(chaos.seconds / 2):
        first.signal(signal.SIGKILL)
        first.end()
    for path in (folder / "store").rglob("*"):
        moment = time.time() + draw.uniform(-10, 10) * DAY_S
        os.utime(path, (moment, moment))
    second = Running(folder, prepare=lambda: jumping(draw.random()))
    second.end()
    chaos.judge(folder, "clock", second)


def jumping(seed: float) -> None:
    """Makes this process's clocks of the day jump; the monotonic clock goes on, as it does where a clock is set."""
    import pipeline.execute
    import pipeline.run_plan

    draw, real, real_ns = random.Random(seed), time.time, time.time_ns

    def jump_s() -> int:
        return draw.randint(-10, 10) * DAY_S

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=jump_s())

    time.time = lambda: real() + jump_s()
    time.time_ns = lambda: real_ns() + jump_s() * 10**9
    for module in (pipeline.execute, pipeline.run_plan):
        module.datetime = Jumping  # type: ignore[attr-defined]


def signals(chaos: Chaos) -> None:
    """SIGTERM and SIGHUP at random moments: it ends soon, without a traceback, and the next run goes on."""
    folder = chaos.place("signalled")
    for number in (signal.SIGTERM, signal.SIGHUP) * 3:
        sweep = Running(folder)
        if sweep.ended(chaos.random.uniform(0.1, chaos.seconds / 2)):
            continue
        sweep.signal(number)
        if not sweep.ended(120):
            sweep.signal(signal.SIGKILL)
            sweep.end()
            chaos.complain(signal.Signals(number).name, "did not end within two minutes")
        if "Traceback" in sweep.said:
            chaos.complain(signal.Signals(number).name, sweep.said[-1500:])
    chaos.judge(folder, "signals", finished(folder))


@contextlib.contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[None]:
    """A mount, and its end. Raises NotHere where this machine allows none."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(done.stderr.strip() or "mount failed")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def remount(how: str, place: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,bind,{how}", str(place)], check=True)
