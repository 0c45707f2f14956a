"""Folders of the files that ship with slackmerge."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of a clone, or the folder slackmerge/ of an installed wheel
CONF = ROOT / "conf"


def shipped(path: str) -> str:
    """Resolve a path: as given, or, if it is relative and missing here, the shipped file of that name."""
    return str(ROOT / path) if not os.path.lexists(path) and os.path.lexists(ROOT / path) else path
