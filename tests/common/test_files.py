"""Files are whole or not there."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.files import publish, read_jsonl, write_jsonl


def test_publishing_leaves_nothing_half_written(tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        aside.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        publish(tmp_path / "results.csv", fail)
    assert list(tmp_path.iterdir()) == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=4))
def test_rows_come_back_to_the_last_bit(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of any script, with line separators that are not ours inside, and every float."""
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_jsonl(path, rows)
    assert repr(read_jsonl(path)) == repr(rows)


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    killed, live, other = (tmp_path / f".{name}.part.png" for name in ("curves.1", "curves.2", "bits.1"))
    for path in (killed, live, other):
        path.write_text("half")
    with live.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        publish(tmp_path / "curves.png", lambda aside: aside.write_text("whole"))
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", live.name, other.name}
    assert (tmp_path / "curves.png").read_text() == "whole" and live.read_text() == "half"
