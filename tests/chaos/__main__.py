"""`make chaos`: the small experiment under attack; its results must be those of a run that nobody disturbed.

    python -m tests.chaos [--kills 100] [--races 4] [--flips 20] [--only kills,races,...] [--seed 0] [--folder DIR]

kills: kill -9 of the whole process group at random moments; run again, until the sweep is done, on one store after
another. races: so many sweeps begin at once on one store. flips: a bit of a published file is flipped, each in a file
of another entry, and must be found before it is used. faults: a disk that fills up and a store that cannot be written
(both need root, for a mount; else a line says that they were left out), a clock that jumps, SIGTERM and SIGHUP.

After each: every published file and the table of results byte for byte those of the undisturbed run, no stage made
twice, no work folder, no file written aside and no process left. Each deviation is a line; the last line is JSON:
{kills, races, flips, faults, wrong}. Exit code 0 where nothing is wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import faults
from tests.chaos.sweeps import Running, contents, finished, imported, left_behind, made_twice, published, same

ATTACKS = ("kills", "races", "flips", "disk", "readonly", "clock", "signals")


class Chaos:
    """Attacks, and what went wrong in them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.wrong = folder, random.Random(seed), 0
        self.done = {"kills": 0, "races": 0, "flips": 0, "faults": 0}
        started = time.monotonic()
        sweep = finished(folder / "undisturbed")
        if sweep.code:
            raise RuntimeError(f"the undisturbed sweep ended with {sweep.code}: {sweep.said}")
        self.seconds = time.monotonic() - started
        self.expected, self.entries = contents(folder / "undisturbed"), published(folder / "undisturbed")
        say(f"undisturbed: {self.seconds:.0f} s, {len(self.expected)} contents")

    def complain(self, where: str, what: object) -> None:
        self.wrong += 1
        say(f"WRONG: {where}: {what}")

    def place(self, name: str) -> Path:
        """A new folder for a store and its runs."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def judge(self, folder: Path, where: str, *sweeps: Running, again: bool = False) -> None:
        """Holds what is there now against the undisturbed run. again: stages may have been made anew."""
        for sweep in sweeps:
            if sweep.code:
                self.complain(where, f"exit code {sweep.code}: {sweep.said[-1000:]}")
            if sweep.left_running:
                self.complain(where, f"processes left: {sweep.left_running}")
        found = contents(folder)
        names = self.expected.keys() | found.keys()
        differ = [name for name in names if not same(name, self.expected.get(name), found.get(name), again)]
        if differ:
            self.complain(where, f"other contents: {sorted(differ)[:5]}")
        if not again and (twice := made_twice(folder)):
            self.complain(where, f"made twice: {twice}")
        if left := left_behind(folder):
            self.complain(where, f"left behind: {left[:5]}")

    def kills(self, wanted: int) -> None:
        """kill -9 at moments spread over what each sweep still has to do, until `wanted` have hit."""
        while self.done["kills"] < wanted:
            folder, whole = self.place("killed"), False
            while self.done["kills"] < wanted and not whole:
                whole = published(folder) == self.entries  # once more, into the report
                sweep = Running(folder)
                if sweep.ended(self.random.uniform(0, self.seconds_left(folder))):
                    break
                sweep.signal(signal.SIGKILL)
                sweep.end()
                self.done["kills"] += 1
                if sweep.left_running:
                    self.complain("kill", f"processes left: {sweep.left_running}")
            self.judge(folder, f"kills up to {self.done['kills']}", finished(folder))
            say(f"kills: {self.done['kills']}")

    def seconds_left(self, folder: Path) -> float:
        """About how long a sweep over this store takes: what is made stays made. A tenth for what is done each time."""
        return self.seconds * (1.1 - published(folder) / self.entries)

    def races(self, at_once: int) -> None:
        """Several sweeps begin at the same moment."""
        folder = self.place("raced")
        sweeps = [Running(folder, name) for name in "abcdefgh"[:at_once]]
        for sweep in sweeps:
            sweep.end()
        self.judge(folder, "race", *sweeps)
        self.done["races"] += at_once

    def flips(self, wanted: int) -> None:
        """A bit flips in a file of each of several entries; the next run finds all and makes them anew."""
        while self.done["flips"] < wanted:
            folder = self.place("flipped")
            shutil.copytree(self.folder / "undisturbed" / "store", folder / "store")
            flipped = faults.flip(folder / "store", wanted - self.done["flips"], self.random)
            sweep = finished(folder)
            damaged = {path.name.rpartition("-")[0] for path in (folder / "store" / ".damaged").glob("*")}
            for entry in flipped - damaged:
                self.complain("flip", f"not found: {entry}")
            self.judge(folder, "flips", sweep, again=True)
            self.done["flips"] += len(flipped)

    def faulty(self, name: str) -> None:
        """One of the other faults."""
        try:
            getattr(faults, name)(self)
            self.done["faults"] += 1
        except faults.NotHere as why:
            say(f"{name}: left out: {why}")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--races", type=int, default=4, help="sweeps that begin at once")
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--only", default=",".join(ATTACKS), help=f"of {','.join(ATTACKS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the stores are, kept afterwards (default: a temporary one)")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in ATTACKS]:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(ATTACKS)}")
    imported()
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = options.folder.absolute() if options.folder else Path(temporary)
        chaos = Chaos(folder, options.seed)
        for name in chosen:
            say(f"{name} …")
            if name in ("kills", "races", "flips"):
                getattr(chaos, name)(getattr(options, name))
            else:
                chaos.faulty(name)
    print(json.dumps({**chaos.done, "wrong": chaos.wrong}))
    return 1 if chaos.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
