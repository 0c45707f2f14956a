"""The store is listed when it changes, and a record is read when it is asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.files import write_json
from pipeline import store as stores
from pipeline.graph import Stage
from pipeline.store import RECORD, Store

STAGES = [Stage("ct", f"nya-{number}", {"tokens": number}) for number in range(20)]


def publish(root: Path, stage: Stage, slug: str | None = None) -> Path:
    folder = root / stage.kind / f"{slug or stage.slug}-{stage.key}"
    folder.mkdir(parents=True)
    write_json(folder / RECORD, {"key": stage.key, "files": {}})
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    read = stores.read_record
    monkeypatch.setattr(stores, "read_record", lambda folder: (seen.append(folder), read(folder))[1])
    return seen


def test_a_search_reads_no_record(tmp_path: Path, reads: list[Path]) -> None:
    for stage in STAGES:
        publish(tmp_path, stage)
    store = Store(tmp_path)
    found = [store.find(stage) for stage in STAGES]
    assert all(found) and not reads
    assert found[3] and found[3].record["key"] == STAGES[3].key
    assert len(reads) == 1


def test_what_comes_and_goes_is_seen_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(STAGES[0]) is None
    folder = publish(tmp_path, STAGES[0], slug="another name")
    assert store.find(STAGES[0])
    assert store.find(STAGES[1]) is None
    publish(tmp_path, STAGES[1])
    assert store.find(STAGES[1]), "in the same tick of the clock"
    os.rename(folder, tmp_path / "aside")
    assert store.find(STAGES[0]) is None


def test_a_folder_that_has_long_been_still_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, STAGES[0])
    os.utime(tmp_path / "ct", (1, 1))
    listed: list[Path] = []
    monkeypatch.setattr(stores.os, "listdir", lambda folder: (listed.append(folder), ["nya-0-" + STAGES[0].key])[1])
    store = Store(tmp_path)
    assert store.find(STAGES[0]) and store.find(STAGES[0]) and store.find(STAGES[1]) is None
    assert len(listed) == 1


def test_a_record_that_changed_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    folder = publish(tmp_path, STAGES[0])
    store = Store(tmp_path)
    assert [entry.record["files"] for entry in store.entries("ct")] == [{}]
    assert [entry.record["files"] for entry in store.entries("ct")] == [{}] and len(reads) == 1
    write_json(folder / RECORD, {"key": STAGES[0].key, "files": {"a": {}}})
    assert [entry.record["files"] for entry in store.entries("ct")] == [{"a": {}}]
