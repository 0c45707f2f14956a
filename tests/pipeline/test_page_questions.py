"""The questions of the page: the user's file, or test items that no score has chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from pipeline import sweep
from pipeline.check.models import check_questions
from pipeline.page_questions import COUNT, draw, read_questions
from pipeline.run_plan import without_stages
from tests.pipeline.tiny_pair import make_pair, tamil


def rows(path: Path, content: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


def test_a_file_gives_its_questions_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "ߒߞߏ?"}\n\n{"question": "நீர் என்றால் என்ன?", "id": 7}\n', encoding="utf-8")
    assert read_questions(str(path)) == ("ߒߞߏ?", "நீர் என்றால் என்ன?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"questions\.jsonl: is empty\. Write one \{\"question\": \"\.\.\.\"\} per line\.$"),
        (b'{"question": "a"}\n{"prompt": "b"}\n', r"line 2: needs a question, got the keys prompt\. Write"),
        (b'{"question": "  "}\n', r"line 1: needs a question, got '  '\. Write"),
        (b'["a"]\n', r"line 1: "),
        (b"{not json}\n", r"line 1"),
        (b'{"question": "\\ud800"}\n', r"line 1"),
        (b'{"question": "caf\xe9"}\n', r"is not UTF-8 \(byte 17\)\. Convert it"),
    ],
)
def test_what_is_no_question_is_named_by_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as wrong:
        read_questions(str(path))
    assert str(wrong.value).startswith("eval.questions") and "\n" not in str(wrong.value)


def test_a_missing_file_and_another_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^eval\.questions=nowhere\.jsonl: no such file\. Give the path of a \.jsonl"):
        read_questions("nowhere.jsonl")
    with pytest.raises(BadInput, match=r"^eval\.questions=a\.txt: must be a \.jsonl file\."):
        read_questions("a.txt")


def test_a_question_that_leaves_no_room_is_found_before_the_run(tmp_path: Path) -> None:
    """Both models of the tiny pair read 512 tokens; the base is asked plainly, the chat model by its template."""
    base, chat = make_pair(tmp_path)
    path = tmp_path / "questions.jsonl"
    setting = [f"model.path={base}", f"sft.source={chat}", f"corpus.path={tamil(tmp_path, 4)}", "language.code=tam"]
    config = sweep.expand(["experiment=adapt-test", *setting, f"eval.questions={path}"], multirun=False).configs[0]
    rows(path, [{"question": "நீர்?"}, {"question": "மழை?"}])
    assert [str(finding) for finding in check_questions(without_stages(config))] == [
        "questions   2, all of them on the page"
    ]
    rows(path, [{"question": "நீர்?"}, {"question": "x" * 3000}])
    with pytest.raises(BadInput, match=r"question 2 has \d+ tokens, and model\.path=.* reads 512 with the answer\. Sh"):
        list(check_questions(without_stages(config)))


def test_test_items_of_the_language_are_drawn_by_their_hash(tmp_path: Path) -> None:
    items = tmp_path / "tasks"
    for language in ("tam", "en"):
        for split in ("dev", "test"):
            name = f"next_{language}.{split}"
            content = [{"id": f"{name}.{n}", "prompt": f"{name}.{n}?", "language": language} for n in range(30)]
            rows(items / f"{name}.jsonl", content)
    ids = [f"next_tam.test.{number}" for number in range(30)]
    for seed in (0, 1):
        first = sorted(ids, key=lambda one: hashlib.sha256(f"{seed}/{one}".encode()).hexdigest())[:8]
        assert draw(tmp_path, tmp_path, "tam", seed) == [f"{one}?" for one in first]
    assert COUNT == 8


def test_a_corpus_without_items_gives_the_beginnings_of_its_documents(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    rows(tmp_path / "text" / "bod.test.jsonl", [{"id": "1", "text": "ཀ" * 500}, {"id": "2", "text": "short"}])
    assert sorted(draw(tmp_path, tmp_path, "bod", 0)) == ["short", "ཀ" * 200]
    with pytest.raises(
        BadInput, match=r"^eval\.questions=null: the text has no test items in xyz\. Set eval\.questions"
    ):
        draw(tmp_path, tmp_path, "xyz", 0)
