"""When each hypothesis was committed, and whether that was before the scores, as far as git can show.

Commit times can be forged; this guards against mistakes, not against fraud.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from common.errors import BadInput
from common.validation import parse_plain_yaml, read_json
from pipeline.report.hypotheses import entries

STAGE = "stage.json"


@dataclass(frozen=True)
class Stated:
    """before: committed before the first score that answers it. text: a sentence for readers."""

    when: Literal["before", "after", "unknown"]
    text: str


def stated(committed: datetime | None | Literal["unknown"], scored: datetime | None) -> Stated:
    """committed: as `commit_times` has it. scored: when the first score that answers it was made, where known."""
    if committed == "unknown":
        return Stated("unknown", "When it was stated is unknown: there is no git history of its file.")
    if committed is None:
        return Stated("after", "Stated after looking: it is not committed as it is now.")
    if scored is None:
        return Stated("unknown", f"Stated {_minute(committed)}; when it was scored is unknown.")
    if committed < scored:
        return Stated("before", f"Stated {_minute(committed)}, before the first score.")
    return Stated("after", f"Stated after looking: {_minute(committed)}, and the first score is of {_minute(scored)}.")


def commit_times(path: Path) -> Mapping[str, datetime | None] | None:
    """Return, by id, since when a hypothesis is committed with its present text; None if it is not.

    None if git cannot know: no repository, or a shallow clone.
    """
    try:
        if _git(path, "rev-parse", "--is-shallow-repository").strip() != "false":
            return None
        begun = _git(path, "rev-list", "--all", "--max-count=1").strip()  # without a commit `git log` fails
        log = _git(path, "log", "--format=%H %ct", "--", path.name).splitlines() if begun else []
    except (OSError, subprocess.CalledProcessError):
        return None
    now = _by_id(entries(path))
    found: dict[str, datetime | None] = dict.fromkeys(now)
    unchanged = set(now)
    for line in log:  # from the newest to the oldest
        commit, seconds = line.split()
        then = _entries_at(path, commit)
        unchanged = {name for name in unchanged if then.get(name) == now[name]}
        found |= dict.fromkeys(unchanged, datetime.fromtimestamp(int(seconds), UTC))
    return found


def first_scored(folders: Iterable[Path]) -> datetime | None:
    """Return when the first of these folders was computed, by its stage.json; None if none has one."""
    times = []
    for folder in folders:
        if (folder / STAGE).is_file():
            times.append(datetime.fromisoformat(str(read_json(folder / STAGE)["finished"])))
    return min((time if time.tzinfo else time.replace(tzinfo=UTC) for time in times), default=None)


def _entries_at(path: Path, commit: str) -> dict[str, Any]:
    """Return the hypotheses of a commit; none if it has no such file, or one that was not whole."""
    try:
        listed = parse_plain_yaml(_git(path, "show", f"{commit}:./{path.name}"))
    except (BadInput, subprocess.CalledProcessError):
        return {}
    return _by_id(listed) if isinstance(listed, list) else {}


def _by_id(listed: list[Any]) -> dict[str, Any]:
    return {str(entry["id"]): entry for entry in listed if isinstance(entry, dict) and "id" in entry}


def _git(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=path.parent, capture_output=True, text=True, encoding="utf-8", check=True
    )
    return done.stdout


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
