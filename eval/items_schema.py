"""Items and documents from JSONL files, every row checked: errors name file and line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.items import item_error, text_error
from common.validation import parse_json

Row = dict[str, Any]
SPLITS = ("dev", "test")


def discover(folder: Path, split: str, what: str) -> dict[str, Path]:
    """The files `<name>.<split>.jsonl` of a folder by name, sorted; `what` names the folder in refusals."""
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise BadInput(f"{what}: {folder} is not a folder")
    suffix = f".{split}.jsonl"
    paths = {path.name.removesuffix(suffix): path for path in sorted(folder.glob(f"*{suffix}"))}
    if not paths:
        raise BadInput(f"{what}: {folder} holds no file *{suffix}")
    return paths


def read_items(path: Path) -> list[Row]:
    """Items of one family in one language, rows of `common.items.Item`."""
    rows = _read(path, item_error)
    for field in ("family", "language"):
        values = sorted({row[field] for row in rows})
        if len(values) > 1:
            raise BadInput(f"{path}: one file holds one {field}, not both {values[0]!r} and {values[1]!r}")
    return rows


def read_documents(path: Path) -> list[Row]:
    """Documents (`{"id", "text"}` a line)."""
    return _read(path, lambda row: text_error(row, ("id", "text")))


def _read(path: Path, wrong: Callable[[Row], str | None]) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 (byte {error.start})") from None
    rows: list[Row] = []
    seen: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line.encode(), f"{path} line {number}")
        problem = wrong(row)
        if not problem and row["id"] in seen:
            problem = f"the id {row['id']!r} is listed twice"
        if problem:
            raise BadInput(f"{path} line {number}: {problem}")
        seen.add(row["id"])
        rows.append(row)
    if not rows:
        raise BadInput(f"{path}: empty; one JSON object a line is needed")
    return rows
