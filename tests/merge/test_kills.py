"""A merge that is killed, at whatever moment, leaves a whole result or none, and nothing that the next does not clear.

SLACKMERGE_KILLS=100 kills so many; by default a few, for time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from common.processes import Stopped
from merge.output import writer
from tests.merge.conftest import recipe
from tests.merge.test_chained import documents

KILLS = int(os.environ.get("SLACKMERGE_KILLS", "24"))


@pytest.mark.parametrize("several", [False, True])
def test_kills_at_random_moments(several: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    models = {"ct": {"density": 0.5}, "sft": {"density": 0.5}}
    recipe(folders, "ties", models).save(tmp_path / "merge.yml")
    if several:
        (tmp_path / "merge.yml").write_text(yaml.safe_dump_all(documents(folders)))
    command = [sys.executable, "-m", "tests.merge.kill_run", tmp_path, str(KILLS)]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    seen = json.loads(ran.stdout)
    print(seen)
    assert seen.get("SIGKILL") and seen.get("SIGTERM") and seen.get("SIGHUP")


@pytest.mark.parametrize("at", ["submit", "set"])
def test_a_signal_between_the_threads_and_the_pass_does_not_wait_for_them(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge once hung after SIGTERM: its thread for the disk waited for a pass that had not begun."""
    stops = iter([Stopped(15)])

    class Sink:
        def __init__(self) -> None:
            self.event = Event()
            self.written = SimpleNamespace(set=self.end)

        def end(self) -> None:
            if at == "set" and (stop := next(stops, None)):
                raise stop
            self.event.set()

        def sync(self) -> None:
            self.event.wait()

    submit = ThreadPoolExecutor.submit

    def submitted(pool: ThreadPoolExecutor, *work: Any) -> Future[Any]:
        future = submit(pool, *work)
        if at == "submit" and (stop := next(stops, None)):
            raise stop
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submitted)
    monkeypatch.setattr(writer, "run", lambda *_: None)
    sinks: Any = [Sink(), Sink()]
    nothing: Any = None
    with pytest.raises(Stopped):  # before, it hung here
        writer._merge(nothing, sinks, (), nothing, {})
    assert all(sink.event.is_set() for sink in sinks)
