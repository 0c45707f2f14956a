"""Sweeps of the small experiment in process groups of their own, begun in a moment: forks of a process that has
imported everything already, so that time is spent on what is being tested.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.files import read_jsonl
from pipeline import cli
from pipeline.store import RECORD, Store

ROOT = Path(__file__).parents[2]
EXPERIMENT = ("experiment=test", "tracking=none", "compute.threads=1")
HEAVY = ("torch", "transformers", "datasets", "lm_eval", "lm_eval.models.huggingface", "pandas")
# of a record: what may differ between two runs, of which one may have had more to train from
TIMES = ("started", "finished", "seconds", "commit", "resumed_tokens", "amount")
LOG = "log.jsonl"  # of a training: it says how many tokens a second there were
LIMIT_S = 1800  # of one sweep


def imported() -> None:
    """Imports what stages import, once for all forks; and all of ours, so that an edit meanwhile changes nothing."""
    rooms = ("common", "train", "merge", "eval", "pipeline")
    files = (path.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py"))
    ours = [".".join(file.with_suffix("").parts) for file in files if not file.stem.startswith("__")]
    for name in (*HEAVY, *ours):
        importlib.import_module(name)


class Running:
    """A sweep that runs: its process group, and what it said."""

    def __init__(self, folder: Path, name: str = "a", prepare: Callable[[], object] = lambda: None) -> None:
        """`name`: of its outputs, one store may have many; `prepare`: called in the process, before it begins."""
        folder.mkdir(parents=True, exist_ok=True)
        self.said_in = folder / f"said-{name}-{time.monotonic_ns()}.txt"
        arguments = ["run", "-m", *EXPERIMENT, f"store={folder / 'store'}", f"outputs={folder / name}"]
        self.pid = os.fork()
        if self.pid == 0:
            self._in_child(arguments, prepare)
        self.code: int | None = None

    def _in_child(self, arguments: list[str], prepare: Callable[[], object]) -> None:
        code = 99
        try:
            os.setsid()
            output = os.open(self.said_in, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            prepare()
            code = cli.pipeline_main(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def ended(self, within_s: float) -> bool:
        """Whether it ends within so many seconds."""
        until = time.monotonic() + within_s
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= until:
                return False
            else:
                time.sleep(0.02)
        return True

    def signal(self, number: int) -> None:
        """To the whole group."""
        os.killpg(self.pid, number)

    def end(self) -> int:
        """Its exit code. Raises TimeoutError, and leaves nothing running."""
        if not self.ended(LIMIT_S):
            self.signal(signal.SIGKILL)
            raise TimeoutError(f"a sweep did not end within {LIMIT_S} s: {self.said_in}")
        assert self.code is not None
        return self.code

    @property
    def said(self) -> str:
        return self.said_in.read_text(encoding="utf-8", errors="replace")

    @property
    def left_running(self) -> list[str]:
        """Processes of its session that live on."""
        left = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.pid and fields[0] != "Z":
                left.append(folder.name)
        return left


def finished(folder: Path, name: str = "a") -> Running:
    """A sweep run to its end."""
    sweep = Running(folder, name)
    sweep.end()
    return sweep


def published(folder: Path) -> int:
    """How many entries the store has."""
    store = Store(folder / "store")
    return sum(len(list(store.entries(kind))) for kind in store.kinds())


def contents(folder: Path, name: str = "a") -> dict[str, Any]:
    """Checksums of all published files, records and logs without times and speeds, and the table of results."""
    found: dict[str, Any] = {}
    store = Store(folder / "store")
    for kind in store.kinds():
        for published in store.entries(kind):
            at = f"{kind}/{published.path.name}"
            record = {field: value for field, value in published.record.items() if field not in TIMES}
            files = record.get("files", {})
            if LOG in files:
                found[f"{at} log"] = {
                    row["tokens"]: {name: value for name, value in row.items() if name != "tokens_per_second"}
                    for row in read_jsonl(published.path / LOG)
                }
            found[at] = {**record, "files": {name: about for name, about in files.items() if name != LOG}}
            found[f"{at} damage"] = published.damage(thorough=True)
            listed = {*published.record.get("files", ()), RECORD}
            there = {str(path.relative_to(published.path)) for path in published.path.rglob("*") if path.is_file()}
            found[f"{at} not recorded"] = sorted(there - listed)
    results = folder / name / "test" / "results.csv"
    found["results.csv"] = results.read_bytes() if results.is_file() else None
    return found


def same(name: str, expected: Any, found: Any, again: bool) -> bool:
    """Whether one of `contents` is as expected. again: where a budget was made anew its log may have more rows, since
    without the states of smaller ones, dropped long ago, it trains from the start.
    """
    if again and expected and found and name.endswith(" log"):
        return bool(expected.items() <= found.items())
    return bool(expected == found)


def made_twice(folder: Path) -> list[str]:
    """Stages that the journals of all runs over this store say were published more than once."""
    counts: Counter[str] = Counter()
    for journal in folder.glob("*/test/runs/*/journal.jsonl"):
        for line in journal.read_bytes().splitlines():
            event = json.loads(line)
            counts[f"{event.get('kind')} {event.get('slug')}"] += event["event"] == "published"
    return [stage for stage, count in counts.items() if count > 1]


def left_behind(folder: Path) -> list[str]:
    """Files of a store that nobody will ask for: work, files written aside, entries that are not whole."""
    store = folder / "store"
    work = [path for path in (store / ".work").glob("*")] if (store / ".work").is_dir() else []
    aside = [path for path in (*store.rglob("*.part*"), *(folder / "a").rglob("*.part*"))]
    return sorted(str(path.relative_to(folder)) for path in (*work, *aside))
