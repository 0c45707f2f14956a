"""Where the files that ship with slackmerge are."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of a clone, or the folder slackmerge/ of an installed wheel
CONF = ROOT / "conf"


def shipped(path: str) -> str:
    """A path as given; if it is relative and names nothing here but something that ships with us, the path of that."""
    return str(ROOT / path) if not os.path.lexists(path) and os.path.lexists(ROOT / path) else path
