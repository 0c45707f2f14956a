"""Files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.files import publish


def test_publishing_leaves_nothing_half_written(tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        aside.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        publish(tmp_path / "results.csv", fail)
    assert list(tmp_path.iterdir()) == []
