"""The questions that models answer freely for the page of an adaptation: the user's, or test items drawn by their hash.

No score plays a part in the draw, and no model has answered before it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import read_jsonl
from common.validation import parse_json
from eval.task_set import truncate

KEY = "eval.questions"
COUNT = 8  # test items, where the user gives no questions
BEGINNING = 200  # characters of a test document, where a corpus has no items


def read_questions(path: str) -> tuple[str, ...]:
    """Read a .jsonl file of `{"question": "..."}` lines. Raises BadInput that names the line."""
    if not path.endswith(".jsonl"):
        raise BadInput(f'{KEY}={path}: must be a .jsonl file. Write one {{"question": "..."}} per line.')
    if not os.path.isfile(path):
        raise BadInput(f"{KEY}={path}: no such file. Give the path of a .jsonl file.")
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{KEY}={path}: is not UTF-8 (byte {error.start}). Convert it, for example with iconv."
        ) from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    found = [
        _question(parse_json(line.encode(), f"{KEY}: {path} line {n}"), f"{path} line {n}") for n, line in numbered
    ]
    if not found:
        raise BadInput(f'{KEY}={path}: is empty. Write one {{"question": "..."}} per line.')
    return tuple(found)


def _question(row: Any, where: str) -> str:
    question = row.get("question") if isinstance(row, dict) else None
    if not isinstance(question, str) or not question.strip():
        got = f"the keys {', '.join(row)}" if isinstance(row, dict) and question is None else repr(question or row)[:60]
        raise BadInput(f'{KEY}: {where}: needs a question, got {got}. Write {{"question": "..."}}.')
    try:
        question.encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"{KEY}: {where}: has half of a surrogate pair, got {question[:40]!a}. Write whole characters."
        ) from None
    return question


def draw(items: Path, corpus: Path, language: str, seed: int) -> list[str]:
    """Return the prompts of the COUNT test items of a language whose SHA-256 of seed and id is smallest.

    A corpus without items gives the beginnings of its test documents. Raises BadInput if it has none.
    """
    rows = [row for path in sorted((items / "tasks").glob("*.test.jsonl")) for row in read_jsonl(path)]
    candidates = [(row["id"], row["prompt"]) for row in rows if row["language"] == language]
    if not candidates:
        path = corpus / "text" / f"{language}.test.jsonl"
        documents = read_jsonl(path) if path.is_file() else []
        candidates = [(row["id"], truncate(row, BEGINNING)["text"]) for row in documents]
    if not candidates:
        raise BadInput(
            f"{KEY}=null: the text has no test items in {language}. Set {KEY} to a .jsonl file of questions."
        )
    return [question for _, question in _smallest(candidates, seed)]


def _smallest(candidates: Sequence[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    return sorted(candidates, key=lambda item: hashlib.sha256(f"{seed}/{item[0]}".encode()).digest())[:COUNT]
