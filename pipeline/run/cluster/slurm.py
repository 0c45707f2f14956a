"""Slurm: its queue, how jobs are submitted, and how they are waited for. Works without accounting (sacct).

One sbatch call, by submitit, submits an array with the jobs that it waits for. A file in the store says what each job
computes, so that a later command waits for it rather than submit the same work. Jobs report in their journals; Slurm is
asked about those that write nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import write_json
from common.project import ROOT
from pipeline.journal import Journal
from pipeline.run import launch
from pipeline.run.cluster.job import ClusterJob
from pipeline.run.cluster.schedule import Piece, arrays, pack_array
from pipeline.run.cluster.site import Site
from pipeline.stages.stage import Stage
from pipeline.store import Store

EXPLAINED = ("failed", "refused", "not_run")  # events that say for good why a stage was not computed
STATUS_EVERY_S = 60.0  # seconds between two lines about the queue, unless it changed
PREFIX = "slackmerge-"
SLURM_TIMEOUT_S = 60.0  # seconds that a Slurm command may take


@dataclass(frozen=True)
class QueueEntry:
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


def query_queue() -> dict[str, QueueEntry] | None:
    """Return all jobs of this user that wait or run, by id; None if Slurm does not answer."""
    try:
        words = ("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%j")
        lines = subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    fields = (line.strip().split("|", 3) for line in lines if line.count("|") >= 3)
    return {job: QueueEntry(*rest) for job, *rest in fields}


def final_state(job: str) -> str:
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


def write_manifest(store: Store, array: str, jobs: Sequence[Job]) -> None:
    """Write what the elements of an array will compute, before it is submitted, for readers of the queue."""
    write_json(_manifests(store) / f"{array}.json", [asdict(job) for job in jobs])


def jobs_of_store(store: Store, seen: dict[str, QueueEntry]) -> list[Job]:
    """Return the jobs in the queue that compute stages of this store. Forgets arrays that have left it."""
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


def jobs_by_key(jobs: Collection[Job]) -> dict[str, Job]:
    """Return the queued job that computes a stage, by the stage's key."""
    return {key: job for job in jobs for key in job.keys}


# --- submit


def submit(site: Site, store: Store, pieces: Sequence[Piece], folder: Path, queued: Mapping[str, Job]) -> list[Job]:
    """Submit jobs, which are in an order in which they could run.

    queued: the job in the queue that computes a stage, by key. Raises BadInput if Slurm rejects one, in Slurm's words;
    what was submitted before stays in the
    """
    makers, submitted = dict(queued), []
    for alike in arrays(pieces):
        array = pack_array(alike, site.evals_per_job) if alike[0].job_class == "evaluate" else alike
        after = sorted({makers[key].id for piece in array for key in piece.needs if key in makers})
        for job in _submit(site, store, array, folder, after):
            makers |= dict.fromkeys(job.keys, job)
            submitted.append(job)
    return submitted


def _submit(site: Site, store: Store, array: Sequence[Piece], folder: Path, after: Sequence[str]) -> list[Job]:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    at_a_time = site.evals_per_job if array[0].job_class == "evaluate" else 1
    resources = site.resources(array[0].job_class)
    calls = [
        ClusterJob(
            folder,
            piece.name,
            tuple(stage.key for stage in piece.stages),
            site.settle_seconds,
            at_a_time,
            resources.python,
        )
        for piece in array
    ]
    digest = hashlib.sha256(" ".join([str(folder), *(call.name for call in calls)]).encode()).hexdigest()[:10]
    name = f"{PREFIX}{array[0].job_class}-{digest}"
    write_manifest(store, name, [Job("", call.name, call.keys, str(folder)) for call in calls])
    # exec: Slurm's warning goes to the batch shell's process
    python = f"exec {resources.python or shlex.quote(sys.executable)}"
    slurm = submitit.SlurmExecutor(logs(folder), max_num_timeout=site.restarts, python=python)
    slurm.update_parameters(**parameters(site, array[0], name, after))
    try:
        jobs = slurm.submit_array(calls)
    except (FailedJobError, FailedSubmissionError) as error:
        raise BadInput(f"site: Slurm rejects {array[0].job_class} jobs: {' '.join(str(error).split())}") from None
    return [Job(job.job_id, call.name, call.keys, str(folder)) for job, call in zip(jobs, calls, strict=True)]


def parameters(site: Site, piece: Piece, name: str, after: Sequence[str]) -> dict[str, Any]:
    """Return the options that submitit writes into the batch script of such jobs."""
    resources = site.resources(piece.job_class)
    import_ours = f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    setup = [*(resources.setup or []), import_ours]
    if resources.python:  # a container has its own paths, and srun passes on the caller's
        setup += [f'export {launch.HOST_PATH}="$PATH"', f'export {launch.HOST_LIBRARIES}="${{LD_LIBRARY_PATH:-}}"']
    wanted = {
        "job_name": name,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "setup": setup,
        "nodes": piece.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": resources.gpus or None,
        "cpus_per_task": resources.cpus,
        "mem": f"{round(resources.memory_gb * 1024)}M",
        "time": round(resources.hours * 60),
        "signal_delay_s": site.warning_seconds,
        "array_parallelism": site.max_parallel,
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "stderr_to_stdout": True,
        "use_srun": False,  # the job is one process on its first node; a training on several nodes calls srun itself
        "additional_parameters": {
            "signal": f"B:USR2@{site.warning_seconds}",
            "requeue": True,
            **(resources.extra or {}),
        },
    }
    return {key: value for key, value in wanted.items() if value is not None}


# --- wait


@dataclass
class Watch:
    """The jobs of a sweep until they end. Events of their journals go into the run's journal, with their logs."""

    jobs: Mapping[str, Job]
    waiting: Mapping[str, Stage]
    store: Store
    journal: Journal
    explained: set[str] = field(default_factory=set)  # keys of stages with an event that says why they failed
    _held: dict[str, str] = field(default_factory=dict)  # reason by job, once it was shown

    def __post_init__(self) -> None:
        self._journals = {job.id: Journal(job.journal) for job in self.jobs.values()}

    def copy_events(self) -> None:
        """Copy what is new in the jobs' journals."""
        for id, journal in self._journals.items():
            for event in journal.new_events():
                self._copy_event(self.jobs[id], event)

    def _copy_event(self, job: Job, event: dict[str, Any]) -> None:
        if event["event"] == "requeued":
            self.journal.message(f"job {job.id} ({job.name}) had to stop; it saved, is queued again and will resume")
        stage = self.waiting.get(event.get("key", ""))
        if stage is None:  # of a stage that was done before this run, or of none
            return
        if event["event"] == "started":
            event = {**event, "job": job.id}
        if event["event"] in EXPLAINED:
            event = {**event, "log": str(job.log)}
            self.explained.add(stage.key)
        self.journal.append(event)

    def unexplained(self, job: Job) -> list[Stage]:
        """Return the stages of a job that are missing without an event."""
        silent = [self.waiting[key] for key in job.keys if key in self.waiting and key not in self.explained]
        return [stage for stage in silent if self.store.find(stage) is None]

    def report_lost(self, job: Job) -> None:
        """Report a job that left the queue without an event: it was cancelled, killed, or never started."""
        first: Stage | None = None
        for stage in self.unexplained(job):
            self.explained.add(stage.key)
            if first is None:
                first, event, log = stage, "failed", {"log": str(job.log)}
                message = f"{stage} failed: its job {job.id} ended as {final_state(job.id)}"
            else:
                event, log, message = "not_run", {}, f"{stage} was not run, as there is no {first}"
            self.journal.write(event, stage, message=message, **log)

    def report_held(self, seen: dict[str, QueueEntry]) -> None:
        """Report, once, jobs that Slurm holds until a person acts."""
        for id, entry in seen.items():
            if id in self.jobs and "held" in entry.reason.lower() and self._held.get(id) != entry.reason:
                self._held[id] = entry.reason
                remedy = f"`scontrol release {id}` or `scancel {id}`"
                self.journal.message(f"job {id} ({self.jobs[id].name}) is held: {entry.reason}; {remedy}")


def wait(watch: Watch, site: Site, look: Callable[[], dict[str, QueueEntry] | None] = query_queue) -> None:
    """Return when all jobs have left the queue, and each of their stages is published or explained."""
    going, last, spoke = set(watch.jobs), "", 0.0
    left_at: dict[str, float] = {}
    while going:
        seen = look()
        watch.copy_events()
        now = time.monotonic()
        if seen is None:
            watch.journal.message("Slurm does not answer; asking again")
        else:
            watch.report_held(seen)
            # a job that was just submitted may be shown late
            left_at = {id: since for id, since in left_at.items() if id not in seen}
            for id in going - set(seen):
                left_at.setdefault(id, now)
                # files may come into sight late
                if not watch.unexplained(watch.jobs[id]) or now - left_at[id] > site.settle_seconds:
                    watch.report_lost(watch.jobs[id])
                    going.discard(id)
            status = counts(seen, going)
            if status and (status != last and now - spoke > 4 * site.poll_seconds or now - spoke > STATUS_EVERY_S):
                watch.journal.message(status)
                last, spoke = status, now
        if going:
            time.sleep(site.poll_seconds)
    watch.copy_events()


def counts(seen: dict[str, QueueEntry], ids: Collection[str]) -> str:
    """Count these jobs by state."""
    states = Counter(seen[id].state.lower() for id in ids if id in seen)
    return f"jobs: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}" if states else ""
