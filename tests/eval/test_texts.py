"""What is looked for in training text: items with their right answers, and no templates."""

from __future__ import annotations

import json
from pathlib import Path

from eval import task_set
from eval.task_set import item_texts, without_template


def test_lines_that_most_items_share_are_left_out() -> None:
    rendered = [f"passage {i}\nWhich book is this from?\nAnswer: {'law' if i % 2 else 'letter'}" for i in range(4)]
    assert without_template(rendered) == [f"passage {i}\nAnswer: {'law' if i % 2 else 'letter'}" for i in range(4)]
    assert without_template(["one\ntwo"]) == ["one\ntwo"]


def test_items_have_their_right_answers_and_documents_are_whole(tmp_path: Path) -> None:
    items = [
        {
            "id": f"i{n}",
            "prompt": f"text {n}\nWhich word?\nAnswer:",
            "choices": ["a", f"b{n}"],
            "answer": 1,
            "trivial": 0,
            "family": "next",
            "language": "xx",
        }
        for n in range(3)
    ]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "tasks" / "next_xx.test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "text" / "xx.test.jsonl").write_text(
        json.dumps({"id": "d0", "text": "a document of some words"}) + "\n"
    )
    found = {item["id"]: item for item in item_texts(task_set.prepare(tmp_path / "tasks", tmp_path / "text", limit=2))}
    assert set(found) == {"i0", "i1", "d0"} and found["d0"]["text"] == "a document of some words"
    assert found["i1"]["task"] == "next_xx" and found["i1"]["text"].split() == ["text", "1", "Answer:", "b1"]
