"""Workers end with the process that started them, however it dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
from pathlib import Path
from common.processes import Workers

def work(number):
    begun = Path(sys.argv[1])
    (begun / str(number)).touch()
    until = time.monotonic() + 300  # of a hang, not of slowness
    while not begun.with_name("killed").exists() and time.monotonic() < until:
        time.sleep(0.01)

if __name__ == "__main__":
    with Workers(2) as workers:
        list(workers.map(work, range(8), ahead=8))
"""


def test_workers_of_a_killed_process_begin_nothing_more(tmp_path: Path) -> None:
    script, begun = tmp_path / "script.py", tmp_path / "begun"
    script.write_text(SCRIPT)
    begun.mkdir()
    command = [sys.executable, str(script), str(begun)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        while len(list(begun.iterdir())) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        (tmp_path / "killed").touch()  # workers that outlived it would go on
        process.communicate(timeout=300)  # the workers have its output too: its end is theirs
    assert {path.name for path in begun.iterdir()} == {"0", "1"}
