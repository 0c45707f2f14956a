"""Wait for jobs: copy events of their journals, and ask Slurm about jobs that write none."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from pipeline.journal import Journal
from pipeline.run.cluster import queue
from pipeline.run.cluster.site import Site
from pipeline.run.console import Progress
from pipeline.stages.stage import Stage
from pipeline.store import Store

EXPLAINED = ("failed", "refused", "not_run")  # events with the reason why a stage was not computed
STATUS_EVERY = 60.0  # seconds between two lines about the queue, unless it changed


class Tail:
    """The lines of a job's journal, as they appear."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, 0

    def events(self) -> list[dict[str, Any]]:
        """Return the events since the last call; an incomplete line is left for the next."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.read)
                lines = file.read()
        except FileNotFoundError:
            return []
        whole = lines[: lines.rfind(b"\n") + 1]
        self.read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Watch:
    """Jobs of a sweep.

    Events of their journals go into the run's journal, worded as in a local run, with their logs.
    """

    def __init__(
        self, jobs: Sequence[queue.Job], waiting: Sequence[Stage], store: Store, journal: Journal, progress: Progress
    ) -> None:
        self.jobs, self.store, self.journal, self.progress = {job.id: job for job in jobs}, store, journal, progress
        self.waiting = {stage.key: stage for stage in waiting}
        self.tails = {job.id: Tail(job.journal) for job in jobs}
        self.explained: set[str] = set()
        self.said: dict[str, str] = {}

    def pass_on(self) -> None:
        """Take what is new from the jobs' journals."""
        for id, tail in self.tails.items():
            for event in tail.events():
                self._pass_on(self.jobs[id], event)

    def _pass_on(self, job: queue.Job, event: dict[str, Any]) -> None:
        kind, stage = event["event"], self.waiting.get(event.get("key", ""))
        if kind == "requeued":
            self.progress.note(f"job {job.id} ({job.name}) had to stop; it saved, is queued again and will resume")
        if stage is None:  # of a stage that was done before this run, or of none
            return
        if kind in EXPLAINED:
            event["log"] = str(job.log)
            self.explained.add(stage.key)
        self.journal.append(event)
        if kind == "started":
            self.progress.say(stage, f"starts in job {job.id}")
        elif kind == "published":
            self.progress.say(stage, f"done in {event['seconds']:.1f} s")
        elif kind in EXPLAINED:
            self.progress.say(stage, event["message"])

    def unexplained(self, job: queue.Job) -> list[Stage]:
        """Return the stages of a job that are missing without an event."""
        silent = [self.waiting[key] for key in job.keys if key in self.waiting and key not in self.explained]
        return [stage for stage in silent if self.store.find(stage) is None]

    def lost(self, job: queue.Job) -> None:
        """Report a job that left the queue without an event: it was cancelled, killed, or never started."""
        first: Stage | None = None
        for stage in self.unexplained(job):
            self.explained.add(stage.key)
            if first is None:
                first, event, log = stage, "failed", {"log": str(job.log)}
                message = f"{stage} failed: its job {job.id} ended as {queue.ended_as(job.id)}"
            else:
                event, log, message = "not_run", {}, f"{stage} was not run, as there is no {first}"
            self.journal.write(event, stage, message=message, **log)
            self.progress.say(stage, message)

    def tell_held(self, seen: dict[str, queue.Seen]) -> None:
        """Report, once, jobs that Slurm holds until a person acts."""
        for id, entry in seen.items():
            if id in self.jobs and "held" in entry.reason.lower() and self.said.get(id) != entry.reason:
                self.said[id] = entry.reason
                remedy = f"`scontrol release {id}` or `scancel {id}`"
                self.progress.note(f"job {id} ({self.jobs[id].name}) is held: {entry.reason}; {remedy}")


def until_ended(watch: Watch, site: Site, look: Callable[[], dict[str, queue.Seen] | None] = queue.look) -> None:
    """Return when all jobs have left the queue, and what they left has been seen or given up."""
    going, last, spoke = set(watch.jobs), "", 0.0
    left_at: dict[str, float] = {}
    while going:
        seen = look()
        watch.pass_on()
        now = time.monotonic()
        if seen is None:
            watch.progress.note("Slurm does not answer; asking again")
        else:
            watch.tell_held(seen)
            # a job that was just submitted may be shown late
            left_at = {id: since for id, since in left_at.items() if id not in seen}
            for id in going - set(seen):
                left_at.setdefault(id, now)
                # files may come into sight late
                if not watch.unexplained(watch.jobs[id]) or now - left_at[id] > site.settle_seconds:
                    watch.lost(watch.jobs[id])
                    going.discard(id)
            status = counts(seen, going)
            if status and (status != last and now - spoke > 4 * site.poll_seconds or now - spoke > STATUS_EVERY):
                watch.progress.note(status)
                last, spoke = status, now
        if going:
            time.sleep(site.poll_seconds)
    watch.pass_on()


def counts(seen: dict[str, queue.Seen], ids: Collection[str]) -> str:
    """Count these jobs by state."""
    states = Counter(seen[id].state.lower() for id in ids if id in seen)
    return f"jobs: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}" if states else ""
