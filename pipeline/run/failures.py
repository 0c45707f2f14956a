"""Stages that were not computed, and the reasons, reported at the end of a run."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.journal import Journal


@dataclass(frozen=True)
class Failures:
    """Events of stages that were not computed: crashed or interrupted, rejected input, missing parents."""

    failed: Sequence[Mapping[str, Any]] = ()
    refused: Sequence[Mapping[str, Any]] = ()
    not_run: Sequence[Mapping[str, Any]] = ()

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 2 if self.refused else 0


def of_run(journal: Journal, absent: Collection[str]) -> Failures:
    """Read from a run's journal what happened to stages that are not in the store, given by their keys."""

    def events(*names: str) -> list[dict[str, Any]]:
        return [event for event in journal.events(*names) if event["key"] in absent]

    return Failures(events("failed", "preempted"), events("refused"), events("not_run"))


def tell(failures: Failures, arguments: Sequence[str]) -> None:
    """Report what failed, where its log is, what was not run because of it, and the command that tries again."""
    failed = [*failures.failed, *failures.refused]
    for message, log in dict.fromkeys((event["message"], event.get("log")) for event in failed):
        print(message, *([f"  log: {log}"] if log else []), sep="\n", file=sys.stderr)
    for message in dict.fromkeys(event["message"] for event in failures.not_run):
        print(message, file=sys.stderr)
    if failed or failures.not_run:
        print(f"to try again, with what is done kept: {_command(arguments)}", file=sys.stderr)


def _command(arguments: Sequence[str]) -> str:
    """Return the command line of a run, from the folder that it was started in."""
    if os.path.basename(sys.argv[0]) == "slackmerge":
        return shlex.join(["slackmerge", *arguments])
    python = sys.executable if sys.prefix == sys.base_prefix else os.path.relpath(sys.executable)
    return shlex.join([python, "-m", "pipeline", *arguments])
