"""The queue of Slurm, and which of its jobs compute stages of a store. Works without accounting (sacct)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.files import write_json
from pipeline.store import Store

PREFIX = "slackmerge-"
SLURM_TIMEOUT_S = 60.0  # seconds that a Slurm command may take


@dataclass(frozen=True)
class Seen:
    """A job in the queue."""

    state: str  # PENDING, RUNNING, COMPLETING ...
    reason: str
    name: str


@dataclass(frozen=True)
class Job:
    """A submitted job of ours: its stages and its journal."""

    id: str  # 17, or 17_3 in an array
    name: str
    keys: tuple[str, ...]
    folder: str  # of the run that submitted it

    @property
    def journal(self) -> Path:
        return Path(self.folder) / f"{self.name}.jsonl"

    @property
    def log(self) -> Path:
        return logs(Path(self.folder)) / f"{self.id}_0_log.out"


def logs(folder: Path) -> Path:
    """Return the folder of the output of a run's jobs."""
    return folder / "slurm"


def look() -> dict[str, Seen] | None:
    """Return all jobs of this user that wait or run, by id; None if Slurm does not answer."""
    try:
        words = ("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%j")
        lines = subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return {job: Seen(*rest) for job, *rest in (line.strip().split("|", 3) for line in lines if line.count("|") >= 3)}


def ended_as(job: str) -> str:
    """Return the last state that Slurm knows of a job, such as CANCELLED, TIMEOUT or OUT_OF_MEMORY."""
    try:
        words = ("scontrol", "show", "job", "--oneliner", job)
        shown = subprocess.run(words, check=True, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return "gone"
    return next((word.removeprefix("JobState=") for word in shown.split() if word.startswith("JobState=")), "gone")


def _manifests(store: Store) -> Path:
    return store.root.absolute() / ".jobs"


@contextlib.contextmanager
def submitting(store: Store) -> Iterator[None]:
    """Held while the queue is read and jobs are submitted, so that two commands at the same time do not submit the
    same work.
    """
    folder = _manifests(store)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def announce(store: Store, array: str, jobs: Sequence[Job]) -> None:
    """Write what the elements of an array will compute, before it is submitted, for readers of the queue."""
    write_json(_manifests(store) / f"{array}.json", [asdict(job) for job in jobs])


def ours(store: Store, seen: dict[str, Seen]) -> list[Job]:
    """Return the jobs in the queue that make stages of this store. Forgets arrays that have left it."""
    jobs, names = [], {entry.name for entry in seen.values()}
    for path in _manifests(store).glob(f"{PREFIX}*.json"):
        if path.stem not in names:
            path.unlink()
    for id, entry in seen.items():
        path = _manifests(store) / f"{entry.name}.json"
        if entry.name.startswith(PREFIX) and path.exists():
            elements = json.loads(path.read_text(encoding="utf-8"))
            element = elements[int(id.partition("_")[2] or 0)]
            jobs.append(Job(id, element["name"], tuple(element["keys"]), element["folder"]))
    return jobs


def making(jobs: Collection[Job]) -> dict[str, Job]:
    """Return the queued job that computes a stage, by the stage's key."""
    return {key: job for job in jobs for key in job.keys}
