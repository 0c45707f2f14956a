"""Documents from a user's own files: text, JSONL with a `text` field, Parquet with a `text` column."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import BadInput, line_of
from common.parsing import parse_json

FORMATS = (".txt", ".jsonl", ".parquet")


def matching(pattern: str, key: str) -> list[Path]:
    """The files that a glob names, sorted.

    Raises BadInput where there are none, one is no file or empty, or one has a format that we do not read.
    """
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise BadInput(f"{key}: no file matches {pattern!r}; give a path or glob of {', '.join(FORMATS)} files")
    for path in paths:
        if path.suffix not in FORMATS:
            raise BadInput(f"{key}: {path} is not one of {', '.join(FORMATS)}")
        if not path.is_file():
            raise BadInput(f"{key}: {path} is no file, or a link to none")
        if path.stat().st_size == 0:
            raise BadInput(f"{key}: {path} is empty")
    return paths


def read_text(path: Path, key: str) -> str:
    """A file as UTF-8, or a refusal that says where the first wrong byte is."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{key}: {path} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from None


def jsonl(path: Path, fields: tuple[str, ...], key: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file, each with the wanted string fields."""
    for number, line in enumerate(read_text(path, key).split("\n"), start=1):  # texts may hold other ends of lines
        if not line.strip():
            continue
        row = parse_json(line.encode(), f"{key}: {path} line {number}")
        wrong = [field for field in fields if not isinstance(row.get(field), str)]
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
    from pyarrow import parquet, types
    from pyarrow.lib import ArrowInvalid

    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid:
        raise BadInput(f"{key}: {path} is not a Parquet file") from None
    if "text" not in file.schema_arrow.names:
        raise BadInput(f"{key}: {path} has no column 'text' (it has {', '.join(file.schema_arrow.names)})")
    kind = file.schema_arrow.field("text").type
    of = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(of) or types.is_large_string(of)):
        raise BadInput(f"{key}: {path} has a column 'text' of {kind}; expected string")
    try:
        for batch in file.iter_batches(columns=["text"]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except (ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{key}: {path} is a damaged Parquet file ({line_of(error)[:200]}); write it again") from None
