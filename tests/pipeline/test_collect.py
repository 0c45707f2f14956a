"""Writing the report of a run."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import BadInput
from pipeline.run import collect


def test_a_disk_that_is_full_at_the_report_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(plan: Any, arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(collect, "_write_report", full)
    plan: Any = SimpleNamespace(outputs=Path("outputs/test"))
    with pytest.raises(BadInput, match="^outputs=outputs/test: the report was not written: the disk is full"):
        collect.write_report(plan, [])
