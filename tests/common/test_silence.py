"""Libraries are silent from the first import on, whatever a command imports first."""

from __future__ import annotations

import subprocess
import sys

BARS = """
import contextlib, io, sys
from pipeline.cli import pipeline_main as main
with contextlib.redirect_stdout(io.StringIO()):
    main(["plan", "experiment=test"])
import tqdm
for _ in tqdm.tqdm(range(3)):
    pass
"""


def test_no_bars_after_a_command() -> None:
    ended = subprocess.run([sys.executable, "-c", BARS], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
