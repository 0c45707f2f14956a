"""The events of a run: a file to which its processes append, one JSON object per line.

It is the one record of what happens to stages; pipeline/run/display.py shows a run from it. The processes of a machine
share a journal. A Slurm job has its own, as several machines that append to one file may lose lines on a network file
system; the command that watches the jobs copies their events.

    started, published              of a stage; with the tokens it resumes from, and the seconds it took
    progress, message, saving       of a stage that runs: {fraction, text}, {text}
    waiting, damaged                of a stage that another process computes, or whose files have changed
    failed, refused, preempted, not_run   why a stage was not computed: {message}, and the log of its job if it has one
    message                         without a stage: a line about the run
    job, requeued                   of a Slurm job
    piece_started, piece_ended      of launcher=gpus, with devices and exit code
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.stages.stage import Stage

FILE = "journal.jsonl"  # in the folder of a run
FAILURES = ("failed", "refused", "not_run", "preempted")  # events that say why a stage was not computed


class Journal:
    """A file of events. An object of this class reads each of them once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: list[dict[str, Any]] = []
        self._bytes_read = 0

    def write(self, event: str, stage: Stage | None = None, **fields: Any) -> None:
        """Append an event of this process, with the present time."""
        named = {} if stage is None else {"kind": stage.kind, "slug": stage.slug, "key": stage.key}
        self.append({"time": round(time.time(), 3), "event": event, "process": os.getpid(), **named, **fields})

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event as it is, such as one from the journal of a job on another machine."""
        line = json.dumps(event, ensure_ascii=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:  # one write, so that lines of several processes do not mix
            file.write(line.encode() + b"\n")

    def message(self, text: str) -> None:
        """Append a line about the run, for people."""
        self.write("message", text=text)

    def new_events(self) -> list[dict[str, Any]]:
        """Return the events since the last call, of all processes; an incomplete line is left for the next call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._bytes_read)
                content = file.read()
        except FileNotFoundError:
            return []
        complete = content[: content.rfind(b"\n") + 1]
        self._bytes_read += len(complete)
        new = []
        for line in complete.split(b"\n"):
            with contextlib.suppress(ValueError):  # an empty line, or one that a full disk has cut
                new.append(json.loads(line))
        self._events += new
        return new

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the events of these names so far."""
        self.new_events()
        return [event for event in self._events if event["event"] in names]
