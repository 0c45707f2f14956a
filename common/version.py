"""The version of slackmerge, and the commit if it runs from a clone."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from common.places import ROOT


def describe() -> str:
    """Format the version: `0.1.0`, or in a clone `0.1.0 (commit 03c8970)`; `+` after the commit marks changed files."""
    at = commit()
    return f"{version()} (commit {at[:7]}{'+' if at.endswith('+') else ''})" if at else version()


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
