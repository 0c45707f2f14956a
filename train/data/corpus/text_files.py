"""Documents from a user's own files: text, JSONL with a `text` field, Parquet with a `text` column."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path

from common.errors import BadInput

FORMATS = (".txt", ".jsonl", ".parquet")


def matching(pattern: str, key: str) -> list[Path]:
    """The files that a glob names, sorted.

    Raises BadInput where there are none, one is empty, or one has a format that we do not read.
    """
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise BadInput(f"{key}: no file matches {pattern!r}; give a path or glob of {', '.join(FORMATS)} files")
    for path in paths:
        if path.suffix not in FORMATS:
            raise BadInput(f"{key}: {path} is not one of {', '.join(FORMATS)}")
        if path.stat().st_size == 0:
            raise BadInput(f"{key}: {path} is empty")
    return paths


def read_text(path: Path, key: str) -> str:
    """A file as UTF-8, or a refusal that says where the first wrong byte is."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{key}: {path} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from None


def jsonl(path: Path, fields: tuple[str, ...], key: str) -> Iterator[dict[str, str]]:
    """The rows of a JSONL file, each with the wanted string fields."""
    for number, line in enumerate(read_text(path, key).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{key}: {path} line {number} is not JSON ({error.msg})") from None
        wrong = [field for field in fields if not isinstance(row, dict) or not isinstance(row.get(field), str)]
        if wrong:
            raise BadInput(f"{key}: {path} line {number} lacks the text field {wrong[0]!r}")
        yield row


def documents(pattern: str, key: str) -> Iterator[str]:
    """The documents of all files that a glob names. In a text file, a blank line ends a document."""
    for path in matching(pattern, key):
        if path.suffix == ".txt":
            texts: Iterator[str] = iter(read_text(path, key).split("\n\n"))
        elif path.suffix == ".jsonl":
            texts = (row["text"] for row in jsonl(path, ("text",), key))
        else:
            texts = _parquet(path, key)
        for text in texts:
            if cleaned := " ".join(text.split()):
                yield cleaned


def _parquet(path: Path, key: str) -> Iterator[str]:
    from pyarrow import parquet
    from pyarrow.lib import ArrowInvalid

    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid:
        raise BadInput(f"{key}: {path} is not a Parquet file") from None
    if "text" not in file.schema_arrow.names:
        raise BadInput(f"{key}: {path} has no column 'text' (it has {', '.join(file.schema_arrow.names)})")
    for batch in file.iter_batches(columns=["text"]):
        yield from (text for text in batch.column(0).to_pylist() if text)
