"""Documents from a user's own files: text, JSONL with a `text` field, Parquet with a `text` column."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import BadInput, line_of, listed
from common.validation import parse_json

FORMATS = (".txt", ".jsonl", ".parquet")
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")  # \s has the no-break space and its like


def matching(pattern: str, key: str) -> list[Path]:
    """Return the files that a glob names, sorted.

    Raises BadInput if there are none, one is no file or empty, or one has a format that we do not read.
    """
    paths = [Path(name) for name in sorted(glob.glob(escaped(pattern), recursive=True))]
    if not paths:
        raise BadInput(f"{key}: no file matches {pattern!r}. Give a path or glob of {', '.join(FORMATS)} files.")
    for path in paths:
        if path.suffix not in FORMATS:
            raise BadInput(f"{key}: expected a {' or '.join(FORMATS)} file, got {path}.")
        if not path.is_file():
            raise BadInput(f"{key}: {path} must be a file or a link to one. Give another.")
        if path.stat().st_size == 0:
            raise BadInput(f"{key}: {path} is empty. Give another file.")
    return paths


def escaped(pattern: str) -> str:
    """Return a glob in which the files and folders that exist under their exact name stand for themselves:
    `[old]/*.txt`.
    """
    exact, rest = pattern, ""
    while exact and not os.path.lexists(exact):
        folder, slash, last = exact.rstrip("/").rpartition("/")
        exact, rest = folder + slash, f"{last}/{rest}" if rest else last
    return glob.escape(exact) + rest


def read_text(path: Path, key: str) -> str:
    """Read a file as UTF-8, without a byte order mark. Raises BadInput that names the first wrong byte."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            number = text[: text.index("\0")].count("\n") + 1
            raise BadInput(
                f"{key}: {path} line {number} contains a NUL character. Remove it, or export the file as text."
            )
        return text
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{key}: {path} is not UTF-8 (byte {error.start}). Convert it, for example with iconv."
        ) from None


def jsonl(path: Path, fields: tuple[str, ...], key: str) -> Iterator[dict[str, Any]]:
    """Return the rows of a JSONL file, each with the wanted string fields."""
    return (row for _, row in numbered_jsonl(path, fields, key))


def numbered_jsonl(path: Path, fields: tuple[str, ...], key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows as `jsonl`, each with the number of its line."""
    for number, line in enumerate(read_text(path, key).split("\n"), start=1):  # texts may contain other ends of lines
        if not line.strip():
            continue
        where = f"{key}: {path} line {number}"
        row = parse_json(line.encode(), where)
        check_fields(row, fields, where)
        yield number, row


def check_fields(row: Mapping[str, Any], fields: Iterable[str], where: str) -> None:
    """Raise BadInput, which `where` begins, for a row without one of these fields as text."""
    for field in fields:
        if field not in row:
            raise BadInput(f"{where} has no field {field!r}. Add it, as text.")
        if not isinstance(row[field], str):
            kind = type(row[field]).__name__
            raise BadInput(f"{where}: the field {field!r} must be text, got {kind}. Write it as text.")
        if "\0" in row[field]:
            raise BadInput(f"{where}: the field {field!r} contains a NUL character. Remove it.")


def documents(pattern: str, key: str) -> Iterator[str]:
    """Yield the documents of all files that a glob names, each with its lines.

    In a text file, a line without anything visible ends a document. White space within a line counts as one space, and
    blank lines within a document as one.
    """
    for path in matching(pattern, key):
        if path.suffix == ".txt":
            texts: Iterator[str] = iter(BLANK_LINE.split(read_text(path, key)))
        elif path.suffix == ".jsonl":
            texts = (row["text"] for row in jsonl(path, ("text",), key))
        else:
            texts = _parquet(path, key)
        for text in texts:
            if cleaned := with_lines(text):
                yield cleaned


def with_lines(text: str) -> str:
    """Return a text whose lines have single spaces and no white space at their ends, and one blank line at most in
    between.
    """
    lines = "\n".join(" ".join(line.split()) for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def _parquet(path: Path, key: str) -> Iterator[str]:
    from pyarrow import parquet, types
    from pyarrow.lib import ArrowInvalid

    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid:
        raise BadInput(f"{key}: {path} is not a Parquet file. Write it again, or rename it.") from None
    if "text" not in file.schema_arrow.names:
        raise BadInput(f"{key}: {path} must have a column 'text', got {listed(file.schema_arrow.names)}. Rename one.")
    kind = file.schema_arrow.field("text").type
    of = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(of) or types.is_large_string(of)):
        raise BadInput(f"{key}: {path} must have strings in the column 'text', got {kind}. Convert it.")
    row = 0
    try:
        for batch in file.iter_batches(columns=["text"]):
            for text in batch.column(0).to_pylist():
                row += 1
                if text and "\0" in text:
                    raise BadInput(f"{key}: {path} row {row}: the column 'text' contains a NUL character. Remove it.")
                yield text or ""
    except (ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{key}: {path} is a damaged Parquet file ({line_of(error)[:200]}). Write it again.") from None
