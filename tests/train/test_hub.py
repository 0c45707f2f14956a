"""Corpora from local folders in the layout of the hub, and what the hub may refuse."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from tests.train.conftest import sentences
from train import corpus, hub, instructions, parts
from train.corpus import files_of, read_jsonl, read_rows
from train.errors import BadInput


def parquet_shards(folder: Path, documents: list[str], shards: int, column: str = "text") -> Path:
    """A data set as the hub keeps it: a card that names a configuration, and Parquet shards."""
    (folder / "xx").mkdir(parents=True)
    (folder / "README.md").write_text('---\nconfigs:\n- config_name: xx\n  data_files: "xx/*.parquet"\n---\n')
    for shard in range(shards):
        rows = documents[shard::shards]
        parquet.write_table(pyarrow.table({column: rows, "url": ["u"] * len(rows)}), folder / "xx" / f"xx_part_{shard:05d}.parquet")
    return folder


def jsonl_shards(folder: Path, documents: list[str], language: str) -> Path:
    """A data set of a JSONL file a language and no configurations."""
    folder.mkdir(parents=True)
    rows = (json.dumps({"title": "t", "text": text, "url": "u"}) + "\n" for text in documents)
    (folder / f"{language}-crawl-only.jsonl").write_text("".join(rows))
    return folder


def source(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"dataset": str(folder), "subset": None, "files": None, "split": "train", "revision": None, "column": "text", **changes}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("hub")
    same = ["The Same, words!", "the same words", "The same -- words"]
    return parquet_shards(root / "own", [*sentences(2, 400), *same], 5), jsonl_shards(root / "english", sentences(3, 200), "en")


def settings(folders: tuple[Path, Path], **changes: Any) -> dict[str, Any]:
    text, english = source(folders[0], subset="xx"), source(folders[1], files="en-crawl*.jsonl")
    shares = {"dev": 0.1, "test": 0.1, "seed": 0, "text_bytes": None, "english_bytes": None}
    return {"source": "hub", "language": "xx", "text": text, "english": english, "workers": 1, **shares, **changes}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_corpus_of_both_layouts(folders: tuple[Path, Path], tmp_path: Path) -> None:
    corpus.build(settings(folders), tmp_path / "out", tmp_path / "work")
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())["languages"]
    for language, total in (("xx", 403), ("en", 200)):
        documents = {split: read_jsonl(tmp_path / "out" / "text" / f"{language}.{split}.jsonl") for split in ("dev", "test")}
        documents["train"] = [row for path in files_of(tmp_path / "out", language) for row in read_rows(path)]
        for split, rows in documents.items():
            assert counts[language][split]["documents"] == len(rows)
        by_id = [{row["id"] for row in rows} for rows in documents.values()]
        assert not by_id[0] & by_id[1] and not by_id[0] & by_id[2] and not by_id[1] & by_id[2]
        assert sum(map(len, documents.values())) <= total and 0.6 * total < len(documents["train"]) < 0.95 * total
    names = {row["id"] for row in (*documents["train"], *documents["dev"], *documents["test"])}
    assert names <= {corpus.hashlib.sha256(corpus.normalised(text).encode()).hexdigest()[:16] for text in sentences(3, 200)}
