"""Start with the files that take longest, so that no process of the suite is left with one of them at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

LONGEST = (  # by `make test ARGS=--durations=50`
    "test_end_to_end.py",
    "test_distributed.py",
    "test_gpus.py",
    "test_memory.py",
    "test_launch.py",
    "test_machine_code.py",
    "test_loops.py",
    "test_kills.py",
    "test_wheel.py",
    "test_hub_models.py",
    "test_further_checkpoints.py",
    "test_adapt_answers.py",
    "test_in_browser.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of these files first, in this order; all others stay as they are."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(Path(item.path).name, len(rank)))
