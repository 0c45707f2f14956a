"""The one name that slackmerge installs. Importing it makes `pipeline`, `merge`, `train`, `eval`, `common` importable.

A wheel has these packages and `conf` in this folder; a clone has them beside it.
docs/explanation/architecture.md says why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent
ROOT = _HERE if (_HERE / "pipeline").is_dir() else _HERE.parent  # the folder that holds pipeline/, merge/, conf/ ...

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `slackmerge` and return its exit code."""
    # Trainings, Slurm jobs and the processes of launchers are started with python -m ..., and inherit this.
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *(path for path in inherited if path not in ("", str(ROOT)))]
    )
    from pipeline import cli

    return cli.main(arguments)
