"""Parts of a source on disk: whole or not there, whatever dies and whoever writes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import parquet

from train.data.corpus import hub
from train.data.corpus.hub import ReadPlan, read_file, write_shard

ROWS = [{"text": "moni"}, {"text": "dziko"}]


def test_two_that_write_the_same_part_leave_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An orphan and its successor: the second comes between the first's writing and renaming."""
    path, write = tmp_path / "00000.parquet", parquet.write_table

    def write_and_meet(*arguments: object, **more: object) -> None:
        monkeypatch.setattr(parquet, "write_table", write)
        write(*arguments, **more)
        write_shard(path, ROWS, 9, [], 2, last=True)

    monkeypatch.setattr(parquet, "write_table", write_and_meet)
    write_shard(path, ROWS, 9, [], 2, last=True)
    assert parquet.read_table(path).to_pylist() == ROWS
    assert {file.name for file in tmp_path.iterdir()} == {"00000.parquet", "00000.json"}


def test_a_note_that_a_kill_left_aside_is_no_part(tmp_path: Path) -> None:
    folder = tmp_path / "00003"
    folder.mkdir()
    part = write_shard(folder / "00000.parquet", ROWS, 9, [], 2, last=True)
    (folder / ".00001.7.part.json").write_text("{")
    plan = ReadPlan(hub.Source("unread"), "corpus.path", lambda *_: iter(()))
    assert read_file((plan, 3, tmp_path)) == [part]
