"""Files are whole or not there."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import files
from common.errors import BadInput
from common.files import Checksums, read_jsonl, write_atomic, write_jsonl


def test_publishing_leaves_nothing_half_written(tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        aside.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_atomic(tmp_path / "results.csv", fail)
    assert list(tmp_path.iterdir()) == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of a busy machine
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
        write_atomic(tmp_path / "curves.png", lambda aside: aside.write_text("whole"))
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", live.name, other.name}
    assert (tmp_path / "curves.png").read_text() == "whole" and live.read_text() == "half"


def test_processes_of_two_hosts_with_the_same_id_do_not_write_to_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.os, "getpid", lambda: 7)

    def write(aside: Path) -> None:
        write_atomic(tmp_path / "scores", lambda other: other.write_text("theirs") and others.append(other))
        aside.write_text("ours")
        assert others != [aside]

    others: list[Path] = []
    write_atomic(tmp_path / "scores", write)
    assert [path.name for path in tmp_path.iterdir()] == ["scores"] and (tmp_path / "scores").read_text() == "ours"


def test_a_memory_of_checksums_that_is_none_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("moni")
    for text in ("[]", "5", "[" * 100_000, "{"):
        (tmp_path / "memory.json").write_text(text)
        whole = Checksums(tmp_path / "memory.json").file(tmp_path / "data")
        assert Checksums(tmp_path / "memory.json").known.popitem()[1] == whole == files.sha256(tmp_path / "data")


def test_a_folder_in_the_place_of_a_memory_of_checksums_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("moni")
    (tmp_path / "memory.json").mkdir()
    with pytest.raises(BadInput, match=r"memory.json: Is a directory"):
        Checksums(tmp_path / "memory.json").file(tmp_path / "data")
