"""Items and documents from JSONL files, every row checked: what is wrong is refused by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import BadInput

Row = dict[str, Any]
ITEM_TEXT = ("id", "prompt", "family", "language")
SPLITS = ("dev", "test")


def discover(folder: Path, split: str, what: str) -> dict[str, Path]:
    """The files `<name>.<split>.jsonl` of a folder by name, sorted; `what` names the folder in refusals."""
    if not folder.is_dir():
        raise BadInput(f"{what}: {folder} is not a folder")
    suffix = f".{split}.jsonl"
    paths = {path.name.removesuffix(suffix): path for path in sorted(folder.glob(f"*{suffix}"))}
    if not paths:
        raise BadInput(f"{what}: {folder} holds no file *{suffix}")
    return paths


def read_items(path: Path) -> list[Row]:
    """Items of one family in one language.

    A line is `{"id", "prompt", "choices", "answer", "trivial", "family", "language"}`.
    """
    rows = _read(path, _wrong_item)
    for field in ("family", "language"):
        values = sorted({row[field] for row in rows})
        if len(values) > 1:
            raise BadInput(f"{path}: one file holds one {field}, not both {values[0]!r} and {values[1]!r}")
    return rows


def read_documents(path: Path) -> list[Row]:
    """Documents (`{"id", "text"}` a line)."""
    return _read(path, lambda row: _wrong_text(row, ("id", "text")))


def _wrong_text(row: Row, fields: tuple[str, ...]) -> str | None:
    for field in fields:
        if not isinstance(row.get(field), str) or not row[field].strip():
            return f"{field!r} must be a text that is not empty"
    return None


def _wrong_item(row: Row) -> str | None:
    if wrong := _wrong_text(row, ITEM_TEXT):
        return wrong
    choices = row.get("choices")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        return "'choices' must be a list of two texts or more, none of them empty"
    for field in ("answer", "trivial"):
        place = row.get(field)
        if type(place) is not int or not 0 <= place < len(choices):
            return f"{field!r} must be the number of a choice, 0 to {len(choices) - 1}, not {place!r}"
    return None


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
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path} line {number}: not JSON ({error.msg})") from None
        problem = wrong(row) if isinstance(row, dict) else "must be a JSON object"
        if not problem and row["id"] in seen:
            problem = f"the id {row['id']!r} stands twice"
        if problem:
            raise BadInput(f"{path} line {number}: {problem}")
        seen.add(row["id"])
        rows.append(row)
    if not rows:
        raise BadInput(f"{path}: empty; one JSON object a line is needed")
    return rows
