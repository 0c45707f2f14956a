"""The events of a run: a file to which its processes append, one JSON object per event.

Next to it, one file per stage has its progress.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import read_jsonl
from pipeline.stages.stage import Stage


class Journal:
    """Events of stages (started, published, failed, refused, preempted, not_run, damaged), in the order of writing.

    Of launcher=gpus also piece_started (with its devices) and piece_ended (with its exit code).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, stage: Stage | None = None, **more: Any) -> None:
        """Append an event of this process, with the present time."""
        named = {} if stage is None else {"kind": stage.kind, "slug": stage.slug, "key": stage.key}
        self.append({"time": round(time.time(), 3), "event": event, "process": os.getpid(), **named, **more})

    def append(self, event: Mapping[str, Any]) -> None:
        """Write an event as it is, such as one that a job on another machine left in its own journal."""
        line = json.dumps(event, ensure_ascii=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:  # one write, so that lines of several processes do not mix
            file.write(line.encode() + b"\n")

    def note(self, stage: Stage, text: str) -> None:
        """Write the progress of a stage: only the last text is kept; an empty text removes it."""
        path = self._note(stage)
        if text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        else:
            path.unlink(missing_ok=True)

    def noted(self, stage: Stage) -> str:
        """Return the last word of a stage, of whatever process of the run; empty where there is none."""
        try:
            return self._note(stage).read_text(encoding="utf-8")
        except OSError:
            return ""

    def _note(self, stage: Stage) -> Path:
        return self.path.parent / "now" / f"{stage.kind}-{stage.key}"

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the events of these names so far."""
        if not self.path.exists():
            return []
        return [event for event in read_jsonl(self.path) if event["event"] in names]
