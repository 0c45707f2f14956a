"""Advice after an unknown name: the nearest known name, or the names to choose from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 10  # names in one message; more would hide what is wrong


def listed(names: Iterable[str]) -> str:
    """List at most ten names, and count the rest."""
    known = list(names)
    rest = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    return ", ".join(known[:MOST_LISTED]) + rest


def suggestion(name: object, names: Iterable[str]) -> str:
    """Ask whether the nearest known name was meant, or list the names to choose from."""
    known = list(names)
    near = difflib.get_close_matches(str(name), known, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Choose one of {listed(known)}." if known else "None is known here."
