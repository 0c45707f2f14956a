"""A run of experiment=test through the entry point, made once for all processes of the suite and kept for its time."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class SmallRun:
    """folder: of store and outputs. A test may run there again or write the report again, and changes no entry."""

    folder: Path
    summary: dict[str, Any]  # the last line
    printed: str
    results: bytes  # results.csv as the run left it


def command(folder: Path, *more: str) -> list[str]:
    """The command line of experiment=test with its store and outputs in a folder."""
    words = ["-m", "pipeline", "-m", "experiment=test", f"store={folder / 'store'}", f"outputs={folder / 'outputs'}"]
    return [sys.executable, *words, *more]


def run(folder: Path, *more: str) -> tuple[dict[str, Any], str]:
    """Run it; the JSON object of the last line, and all that was printed."""
    done = subprocess.run(command(folder, *more), check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The run: of the process of the suite that needs it first. Others wait at the lock."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "small-run"
    kept = folder / "kept.json"
    with (root / "small-run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            summary, printed = run(folder)
            results = Path(summary["results"]).read_text()
            kept.write_text(json.dumps({"summary": summary, "printed": printed, "results": results}))
    found = json.loads(kept.read_text())
    return SmallRun(folder, found["summary"], found["printed"], found["results"].encode())


def made(folder: Path, kinds: str = "*") -> dict[Path, bytes]:
    """Weights and scores in a store, by their paths in it."""
    files = [*folder.glob(f"store/{kinds}/*/model/*.safetensors"), *folder.glob(f"store/{kinds}/*/scores.jsonl")]
    return {path.relative_to(folder): path.read_bytes() for path in files}
