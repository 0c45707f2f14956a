"""The store is listed when it changes, and a record is read when it is asked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from common.files import write_json
from pipeline import store as stores
from pipeline.run import run
from pipeline.run.display import Estimates
from pipeline.stages import STAGE_TYPES
from pipeline.stages.stage import Stage
from pipeline.stages.trajectory import Trajectory
from pipeline.store import RECORD, Store
from tests.pipeline.toy_stage import toy_stage

STAGES = [toy_stage("ct", f"nya-{number}", {"tokens": number}) for number in range(20)]


def publish(root: Path, stage: Stage, slug: str | None = None) -> Path:
    folder = root / stage.kind / f"{slug or stage.slug}-{stage.key}"
    folder.mkdir(parents=True)
    write_json(folder / RECORD, record_of(stage))
    return folder


def record_of(stage: Stage) -> dict[str, Any]:
    about = {"finished": "2026-01-01", "seconds": 1.0, "amount": 1.0}
    return {"key": stage.key, "settings": stage.key_content, **about, "files": {}}


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
    files = {"a": {"bytes": 1, "sha256": ""}}
    write_json(folder / RECORD, {**record_of(STAGES[0]), "files": files})
    assert [entry.record["files"] for entry in store.entries("ct")] == [files]


@pytest.mark.parametrize(
    "text",
    [
        "[]", "[1]", "5", "[" * 100_000, '{"kind": "ct"}', '{"a": 1, "files": []}',
        *(json.dumps({**record_of(STAGES[0]), **wrong}) for wrong in (
            {"files": {"a": {}}}, {"files": {"a": 5}}, {"files": []}, {"settings": 5}, {"seconds": "long"},
        )),
    ],
)  # fmt: skip
def test_a_record_that_says_something_else_is_damage(tmp_path: Path, text: str) -> None:
    (publish(tmp_path, STAGES[0]) / RECORD).write_text(text)
    (entry,) = Store(tmp_path).entries("ct")
    assert (entry.record, entry.has("a")) == ({}, False)
    assert "cannot be read" in str(entry.damage(thorough=True))
    assert Estimates(Store(tmp_path), {"ct": 7.0}).rate(STAGE_TYPES["ct"]) == 7.0
    assert run.verify(Store(tmp_path)) == 1 and not list(Store(tmp_path).entries("ct"))


def test_a_record_of_a_trajectory_without_a_budget_is_passed_over(tmp_path: Path) -> None:
    folder = publish(tmp_path, STAGES[0])
    write_json(folder / RECORD, {**record_of(STAGES[0]), "settings": {}, "trajectory": "t"})
    assert Trajectory("t", (STAGES[1],)).published(Store(tmp_path)) == []


def test_a_file_where_a_kinds_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "ct").touch()
    with pytest.raises(BadInput, match=r"ct: a store must be a folder"):
        Store(tmp_path).find(STAGES[0])
