"""What the console says: which stage runs, how far it is, and about how long the rest will take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

from common.units import duration
from pipeline.stages.stage import STAGE_TYPES, Stage
from pipeline.stages.trajectory import previous_stages, tokens_of
from pipeline.store import Store

UPDATE_EVERY_S = 5.0  # seconds between two lines about the same stage


# While a display holds the terminal (live.py), the file that lines go to, for this process and those that it starts.
SAY_TO = "SLACKMERGE_SAY_TO"


def say(line: str) -> None:
    """A line on the console, at once: other processes write there too."""
    if SAY_TO not in os.environ:
        print(line, flush=True)
        return
    with open(os.environ[SAY_TO], "ab", buffering=0) as file:  # one write, so that lines do not mix
        file.write(line.encode() + b"\n")


def amount(stage: Stage, resumed: int = 0) -> float:
    """How much work a stage is: millions of tokens where it trains (from `resumed` tokens on), else 1."""
    return (stage.tokens - resumed) / 1e6 if stage.type.trained else 1.0


class Estimates:
    """Seconds that stages will take: by the last entries of their kind in the store, or by the config's first guess."""

    def __init__(self, store: Store, first_guess: Mapping[str, float], jobs: int = 1) -> None:
        self.store, self.first_guess, self.jobs = store, first_guess, jobs
        self.rates: dict[str, float] = {}

    def rate(self, kind: str) -> float:
        """Seconds for an `amount` of 1."""
        if kind not in self.rates:
            records = sorted(
                (entry.record for entry in self.store.entries(kind) if entry.record),
                key=lambda record: record["finished"],
            )[-5:]
            seconds, work = sum(record["seconds"] for record in records), sum(record["amount"] for record in records)
            self.rates[kind] = seconds / work if work else self.first_guess.get(kind, STAGE_TYPES[kind].seconds)
        return self.rates[kind]

    def forget(self, kind: str) -> None:
        """A stage of this kind was just measured."""
        self.rates.pop(kind, None)

    def of(self, stages: Sequence[Stage]) -> float:
        """Seconds for all of these that are not published, by `jobs` processes that share the work."""
        previous = previous_stages(stages)
        missing = [stage for stage in stages if self.store.find(stage) is None]
        resumed = {key: tokens_of(before) for key, before in previous.items()}
        work = ((stage.kind, amount(stage, resumed.get(stage.key, 0))) for stage in missing)
        return sum(each * self.rate(kind) for kind, each in work) / self.jobs


class Progress:
    """Lines about the stages of a plan. `stages` is the whole sweep, of which a process may run a part."""

    def __init__(self, stages: Sequence[Stage], estimates: Estimates, say: Callable[[str], None]) -> None:
        self.stages, self.estimates, self._say = stages, estimates, say
        self.unfinished = {stage.key: stage for stage in stages}
        self.spoke = self.started = 0.0
        self.count()

    def say(self, stage: Stage, text: str) -> None:
        """Print a line about a stage, behind how many stages of the sweep are finished."""
        width, finished = len(str(len(self.stages))), len(self.stages) - len(self.unfinished)
        self.spoke = time.monotonic()
        self._say(f"[{finished:{width}}/{len(self.stages)}] {stage}: {text}")

    def count(self) -> None:
        """Look up which stages are finished: other processes finish some too."""
        find = self.estimates.store.find
        self.unfinished = {key: stage for key, stage in self.unfinished.items() if find(stage) is None}

    def note(self, text: str) -> None:
        """A line about no stage in particular."""
        self._say(text)

    def start(self, stage: Stage, work: float) -> None:
        self.started = time.monotonic()
        self.count()
        if SAY_TO in os.environ:  # the display says what runs
            return
        seconds, left = work * self.estimates.rate(stage.kind), self.estimates.of(self.stages)
        self.say(stage, f"starts, about {duration(seconds)}; all in all about {duration(max(seconds, left))} left")

    def update(self, stage: Stage, share: float, note: str = "") -> str | None:
        """`share` of the stage is done. Says so, and returns what it said, unless it spoke a moment ago."""
        if time.monotonic() - self.spoke < UPDATE_EVERY_S or not share:
            return None
        left = (time.monotonic() - self.started) * (1 - share) / share
        text = f"{share:.0%}{', ' if note else ''}{note}, about {duration(left)} left"
        if SAY_TO in os.environ:
            self.spoke = time.monotonic()
        else:
            self.say(stage, text)
        return text

    def done(self, stage: Stage, seconds: float, note: str = "") -> None:
        self.estimates.forget(stage.kind)
        self.count()
        self.say(stage, f"done in {seconds:.1f} s{note}")
