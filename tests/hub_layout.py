"""Local folders in the layouts of the Hugging Face hub, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
from pyarrow import parquet


def parquet_shards(folder: Path, documents: list[str], shards: int, column: str = "text") -> Path:
    """A data set as the hub keeps it: a card that names a configuration `xx`, and Parquet shards."""
    (folder / "xx").mkdir(parents=True)
    (folder / "README.md").write_text('---\nconfigs:\n- config_name: xx\n  data_files: "xx/*.parquet"\n---\n')
    for shard in range(shards):
        rows = documents[shard::shards]
        table = pyarrow.table({column: rows, "url": ["u"] * len(rows)})
        parquet.write_table(table, folder / "xx" / f"xx_part_{shard:05d}.parquet")
    return folder


def jsonl_shards(folder: Path, documents: list[str], language: str) -> Path:
    """A data set of a JSONL file a language and no configurations."""
    folder.mkdir(parents=True)
    rows = (json.dumps({"title": "t", "text": text, "url": "u"}) + "\n" for text in documents)
    (folder / f"{language}-crawl-only.jsonl").write_text("".join(rows))
    return folder
