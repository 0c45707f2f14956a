"""Where slackmerge is installed, and its version."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of a clone, or the folder slackmerge/ of an installed wheel
CONF = ROOT / "conf"


def shipped(path: str) -> str:
    """Resolve a path: as given, or, if it is relative and missing here, the shipped file of that name."""
    return str(ROOT / path) if not os.path.lexists(path) and os.path.lexists(ROOT / path) else path


def describe_version() -> str:
    """Format the version: `0.1.0`, or in a clone `0.1.0 (commit 03c8970)`; `+` after the commit marks changed files."""
    head = commit()
    return f"{version()} (commit {head[:7]}{'+' if head.endswith('+') else ''})" if head else version()


def version() -> str:
    """Return the version in pyproject.toml of a clone, else of the installed package."""
    try:
        import tomllib

        return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    except FileNotFoundError:
        return metadata.version("slackmerge")


@cache
def commit() -> str | None:
    """Return the commit of this code, with `+` if files differ from it; None outside a clone of slackmerge.

    A wheel may be installed inside somebody else's repository, whose commit is not ours.
    """
    top = _git("rev-parse", "--show-toplevel")
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "-uno")
    if top is None or head is None or changed is None or Path(top).resolve() != ROOT:
        return None
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
