"""Corpora from local folders in the layout of the hub."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from common.errors import BadInput
from common.files import read_jsonl
from tests.hub_layout import jsonl_shards, parquet_shards
from tests.toy_text import sentences
from train.data import instructions
from train.data.corpus import build, hub
from train.data.corpus.documents import normalised, read_rows, training_files
from train.settings import CorpusOptions, HubCorpusSettings, ItemsSettings, TextSource


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("hub")
    same = ["The Same, words!", "the same words", "The same -- words"]
    text = parquet_shards(root / "own", [*sentences(2, 400), *same], 5)
    return text, jsonl_shards(root / "english", sentences(3, 200), "en")


def settings(**changes: Any) -> HubCorpusSettings:
    text = TextSource(dataset=None, subset="xx", files=None, split="train", revision=None, column="text")
    english = TextSource(
        dataset=None, subset=None, files="en-crawl*.jsonl", split="train", revision=None, column="text"
    )
    values = {"source": "hub", "language": "xx", "dev": 0.1, "test": 0.1, "seed": 0, "text": text, "english": english}
    return HubCorpusSettings(**{**values, "text_bytes": None, "english_bytes": None, **changes})


def options(folders: tuple[Path, Path], workers: int = 1) -> CorpusOptions:
    return CorpusOptions(text_folder=str(folders[0]), english_folder=str(folders[1]), workers=workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_corpus_of_both_layouts(folders: tuple[Path, Path], tmp_path: Path) -> None:
    build.build(settings(), options(folders), tmp_path / "out", tmp_path / "work")
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())["languages"]
    for language, total in (("xx", 403), ("en", 200)):
        documents = {
            split: read_jsonl(tmp_path / "out" / "text" / f"{language}.{split}.jsonl") for split in ("dev", "test")
        }
        documents["train"] = [row for path in training_files(tmp_path / "out", language) for row in read_rows(path)]
        for split, rows in documents.items():
            assert counts[language][split]["documents"] == len(rows)
        by_id = [{row["id"] for row in rows} for rows in documents.values()]
        assert not by_id[0] & by_id[1] and not by_id[0] & by_id[2] and not by_id[1] & by_id[2]
        assert sum(map(len, documents.values())) <= total and 0.6 * total < len(documents["train"]) < 0.95 * total
    names = {row["id"] for row in (*documents["train"], *documents["dev"], *documents["test"])}
    assert names <= {hashlib.sha256(normalised(text).encode()).hexdigest()[:16] for text in sentences(3, 200)}


def test_the_same_corpus_for_any_number_of_workers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for workers in (1, 2):
        out, work = tmp_path / str(workers), tmp_path / f"work{workers}"
        build.build(settings(text_bytes=40_000), options(folders, workers), out, work)
    alone, together = (contents(tmp_path / str(workers)) for workers in (1, 2))
    assert alone == together and len(alone) > 5


def test_text_is_taken_up_to_a_number_of_bytes(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SHARD_BYTES", 2_000)
    wanted_bytes = settings(text_bytes=40_000, english_bytes=30_000)
    build.build(wanted_bytes, options(folders), tmp_path / "out", tmp_path / "work")
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())["languages"]
    longest = max(len(text) for text in sentences(2, 400) + sentences(3, 200))
    for language, wanted in (("xx", 40_000), ("en", 30_000)):
        assert wanted <= counts[language]["train"]["bytes"] < wanted + 2_000 + longest
        taken = sum(len(row["text"]) for path in training_files(tmp_path / "out", language) for row in read_rows(path))
        assert taken == counts[language]["train"]["bytes"]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from train.data.corpus import build, hub
from train.settings import CorpusOptions, HubCorpusSettings
hub.SHARD_BYTES = 3_000
write, left = hub.write_shard, int(sys.argv[4])
def watched(*arguments, **more):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments, **more)
hub.write_shard = watched
settings, options = json.loads(sys.argv[1])
build.build(HubCorpusSettings(**settings), CorpusOptions(**options), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_kill_costs_the_part_that_was_being_read(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = json.dumps([settings().model_dump(), options(folders).model_dump()])
    arguments = [described, str(tmp_path / "killed"), str(tmp_path / "work"), "13"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert killed.returncode == -9
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.parquet")}
    assert len(kept) == 12
    monkeypatch.setattr(hub, "SHARD_BYTES", 3_000)
    build.build(settings(), options(folders), tmp_path / "out", tmp_path / "work")
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.parquet")}.items()
    build.build(settings(), options(folders), tmp_path / "straight", tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_items_of_a_corpus_from_the_hub(folders: tuple[Path, Path], tmp_path: Path) -> None:
    build.build(settings(), options(folders), tmp_path / "corpus", tmp_path / "work")
    wanted = ItemsSettings(language="xx", families=("next",), sft_items=9, eval_items=7, seed=0)
    instructions.build(tmp_path / "corpus", wanted, tmp_path / "items")
    assert len(read_jsonl(tmp_path / "items" / "sft.jsonl")) == 9
    assert len(read_jsonl(tmp_path / "items" / "tasks" / "next_xx.test.jsonl")) == 7


def test_the_stage_names_a_file_whose_column_is_not_text(folders: tuple[Path, Path], tmp_path: Path) -> None:
    own = parquet_shards(tmp_path / "own", sentences(2, 20), 2)
    rows = pyarrow.table({"text": [["a list"]] * 3, "url": ["u"] * 3})
    parquet.write_table(rows, own / "xx" / "xx_part_00001.parquet")
    with pytest.raises(BadInput, match="file 2 of 2: after row 0: a column changes its data type .*list") as refusal:
        build.build(settings(), options((own, folders[1])), tmp_path / "out", tmp_path / "work")
    assert str(own) in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_stage_names_a_late_row_that_is_not_text(folders: tuple[Path, Path], tmp_path: Path) -> None:
    own = jsonl_shards(tmp_path / "own", sentences(2, 200), "xx")
    with (own / "xx-crawl-only.jsonl").open("a") as file:
        file.write(json.dumps({"title": "t", "text": 7, "url": "u"}) + "\n")
    source = TextSource(dataset=None, subset=None, files=None, split="train", revision=None, column="text")
    changed = settings().replace(text=source)
    with pytest.raises(BadInput, match="own row 201: column 'text' must have text in every row, got int"):
        build.build(changed, options((own, folders[1])), tmp_path / "out", tmp_path / "work")


def test_a_decomposed_copy_falls_into_the_same_split() -> None:
    for text in sentences(4, 30):
        marked = text.replace("o", "\u1ecd\u0300")
        composed = hub.parse_document(marked, seed=0, dev=0.3, test=0.3)
        copy = hub.parse_document(unicodedata.normalize("NFD", marked), seed=0, dev=0.3, test=0.3)
        assert composed is not None and copy is not None
        assert (composed[0], composed[1]["id"]) == (copy[0], copy[1]["id"]) and composed[1]["text"] == marked
