"""What tests assert of a message for users: one line that names the key. Its wording is in messages.yaml alone.

After a change of wording: `UPDATE_MESSAGES=1 .venv/bin/python -m pytest -n 0 tests`, then read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

STORED = Path(__file__).with_name("messages.yaml")
UPDATE = "UPDATE_MESSAGES"


def assert_one_line(error: object, key: str) -> None:
    """Assert that an error is one line and begins with the key or file that it is about."""
    line = str(error).rstrip("\n")
    assert line and "\n" not in line, line
    assert line.startswith(key), line


def assert_wording(case: str, error: object, **places: object) -> None:
    """Assert that a message is the stored one. places: what replaces folders of this test, by its name."""
    line = str(error).rstrip("\n")
    for name, place in places.items():
        line = line.replace(str(place), name)
    messages = stored()
    if UPDATE in os.environ:
        text = yaml.safe_dump(messages | {case: line}, allow_unicode=True, width=10_000)
        STORED.write_text(text, encoding="utf-8")
        return
    assert case in messages, f"{STORED.name} has no {case!r}: run the tests with {UPDATE}=1"
    assert line == messages[case]


def stored() -> dict[str, str]:
    """Return the messages of messages.yaml by case."""
    return yaml.safe_load(STORED.read_text(encoding="utf-8")) or {}
