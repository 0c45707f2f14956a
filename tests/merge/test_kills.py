"""A merge that is killed, at whatever moment, leaves a whole result or none, and nothing that the next does not clear.

SLACKMERGE_KILLS=100 kills so many; by default a few, for time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
