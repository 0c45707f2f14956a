"""What is refused of items and documents, by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from eval import task_set
from eval import task_set as data

GOOD: dict[str, Any] = {
    "id": "1",
    "prompt": "p",
    "choices": ["a", "b"],
    "answer": 0,
    "trivial": 1,
    "family": "next",
    "language": "nya",
}


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


BAD_ITEMS = {
    "empty file": (b"", "empty"),
    "blank lines only": (b"\n \n", "empty"),
    "not UTF-8": (lines(GOOD) + b'{"id": "\xe9"}', r"not UTF-8 \(byte \d+\)"),
    "not JSON": (lines(GOOD) + b"{'id': 2}", "line 2: not JSON"),
    "not an object": (b"[1]", "line 1: must be an object"),
    "no prompt": (lines({**GOOD, "prompt": " "}), "line 1: 'prompt'"),
    "id is a number": (lines({**GOOD, "id": 1}), "line 1: 'id'"),
    "one choice": (lines({**GOOD, "choices": ["a"]}), "line 1: 'choices'"),
    "choices are a text": (lines({**GOOD, "choices": "ab"}), "line 1: 'choices'"),
    "an empty choice": (lines({**GOOD, "choices": ["a", ""]}), "line 1: 'choices'"),
    "answer out of range": (
        lines(GOOD, {**GOOD, "id": "2", "answer": 2}),
        "line 2: 'answer' must be the number of a choice, 0 to 1, not 2",
    ),
    "answer negative": (lines({**GOOD, "answer": -1}), "'answer'"),
    "answer is a boolean": (lines({**GOOD, "answer": True}), "'answer'"),
    "answer is a text": (lines({**GOOD, "answer": "0"}), "'answer'"),
    "no trivial": (lines({key: value for key, value in GOOD.items() if key != "trivial"}), "'trivial'.*None"),
    "id twice": (lines(GOOD, GOOD), "line 2: the id '1' is listed twice"),
    "two families": (lines(GOOD, {**GOOD, "id": "2", "family": "blank"}), "one family, not both 'blank' and 'next'"),
    "two languages": (lines(GOOD, {**GOOD, "id": "2", "language": "en"}), "one language"),
}


@pytest.mark.parametrize(("content", "message"), BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_bad_items_are_refused_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "next_nya.test.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as refused:
        task_set.prepare(tmp_path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_document_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nya.dev.jsonl").write_bytes(lines({"id": "1", "text": "a"}, {"id": "2"}))
    with pytest.raises(BadInput, match=r"nya\.dev\.jsonl line 2: 'text'"):
        task_set.prepare(text=tmp_path, split="dev")


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "nya.test.jsonl"
    path.write_text(json.dumps({"id": "1", "text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert data.read_documents(path) == [{"id": "1", "text": "a\u2028b\x85c"}]


def test_a_missing_folder_and_one_without_files_of_the_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="items: .*none is not a folder"):
        task_set.prepare(tmp_path / "none")
    (tmp_path / "next_nya.dev.jsonl").write_bytes(lines(GOOD))
    with pytest.raises(BadInput, match=r"items: .* holds no file \*\.test\.jsonl"):
        task_set.prepare(tmp_path)
    assert list(data.find_files(tmp_path, "dev", "items")) == ["next_nya"]
