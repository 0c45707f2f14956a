"""Start with the files that take longest, and keep the garbage collector from scanning code."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest

from tests import quick

gc.disable()  # while tests are collected: a tenth of the time that imports take


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-durations", action="store_true", help="write tests/durations.json from this run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the files that take longest first, so that no process is left with one of them at the end."""
    seconds = quick.durations()
    items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], 0.0))


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write how long each test took, with its fixtures."""
    if config.getoption("--write-durations"):
        seconds: Counter[str] = Counter()
        for report in (report for reports in terminalreporter.stats.values() for report in reports):
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] += report.duration
        quick.write_durations(seconds)


@pytest.fixture(autouse=True, scope="module")
def frozen_garbage_collector() -> None:
    """Leave what is alive before a file out of later collections: half a million objects of imported modules.

    Each training and each scored merge collects; a collection that scans them takes half a second.
    """
    gc.collect()
    gc.freeze()
