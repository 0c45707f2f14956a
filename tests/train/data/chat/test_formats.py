"""Rows of data sets as conversations, whatever their columns are called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from common.files import write_jsonl
from train.data import conversations
from train.data.conversations import LeftOut, normalise_turns

QUESTION, ANSWER = "བོད་ཡིག་ག་རེ་རེད?", "நீர் ஆறு மலை."


def reply(text: str, rank: int | None, *replies: Any, role: str = "assistant", **more: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


def message(name: str, parent: str | None, role: str, text: str, rank: int | None = None) -> dict[str, Any]:
    of_tree = {"message_id": name, "parent_id": parent, "message_tree_id": "a", "lang": "bo"}
    return {**of_tree, "role": role, "text": text, "rank": rank, "deleted": False}


ONE = {
    "messages": [
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": f" {ANSWER}\n"}]}
    ],
    "parts": [
        {"messages": [
            {"role": "user", "content": [{"type": "text", "text": QUESTION}]}, {"role": "assistant", "content": ANSWER},
        ]}
    ],
    "struct of lists": [{"messages": {"role": ["user", "assistant"], "content": [QUESTION, ANSWER]}}],
    "sharegpt": [{"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]}],
    "alpaca": [{"instruction": QUESTION, "input": "", "output": ANSWER}],
    "dolly": [{"instruction": QUESTION, "context": "", "response": ANSWER, "category": "open_qa"}],
    "aya": [{"inputs": QUESTION, "targets": ANSWER, "language": "Tibetan"}],
    "prompts": [{"prompt": QUESTION, "completion": ANSWER}],
    "oasst tree": [
        {"message_tree_id": "a", "prompt": reply(
            QUESTION, None, reply("worse", 1), reply(ANSWER, 0), reply("gone", -1, deleted=True), role="prompter",
        )}
    ],
    "oasst messages": [
        message("a", None, "prompter", QUESTION), message("b", "a", "assistant", "worse", 1),
        message("c", "a", "assistant", ANSWER, 0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_one_conversation_in_all_formats_is_the_same(name: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine.jsonl", ONE[name])
    [row], counts = conversations.own_conversations(str(tmp_path / "mine.jsonl"), "auto")
    assert row["messages"] == [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    assert not counts


def test_the_best_path_of_a_tree_has_several_turns(tmp_path: Path) -> None:
    rows = [
        message("a", None, "prompter", "Q1"), message("b", "a", "assistant", "A1", 0),
        message("c", "a", "assistant", "worse", 1), message("d", "c", "prompter", "lost", 0),
        message("e", "b", "prompter", "Q2"), message("f", "e", "assistant", "unranked"),
        message("g", "e", "assistant", "A2", 3), message("h", "g", "prompter", "asked in vain"),
    ]  # fmt: skip
    write_jsonl(tmp_path / "mine.jsonl", rows)
    [row], counts = conversations.own_conversations(str(tmp_path / "mine.jsonl"), "oasst")
    assert [said["content"] for said in row["messages"]] == ["Q1", "A1", "Q2", "A2"]
    assert counts == {"shortened": 1}


@pytest.mark.parametrize("two", ["prompt", "messages"])
def test_a_row_of_two_formats_names_both(two: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [ONE["alpaca"][0] | (ONE["messages" if two == "messages" else "aya"][0])])
    other = "messages and of alpaca" if two == "messages" else "alpaca and of aya"
    with pytest.raises(BadInput, match=f"line 1: has the columns of {other}. Set sft.format"):
        conversations.own_conversations(str(tmp_path / "mine.jsonl"), "auto")
    [row], _ = conversations.own_conversations(str(tmp_path / "mine.jsonl"), "alpaca")
    assert row["messages"][1]["content"] == ANSWER


REFUSED: dict[str, tuple[list[Any], str, str]] = {
    "no known columns": ([{"a": 1}], "auto", r"line 1: must have the columns of a known format \(messages: messages;"),
    "another format": ([{"messages": []}], "aya", r"line 1: sft.format=aya needs the columns inputs and targets"),
    "two formats in a file": (ONE["aya"] + ONE["alpaca"], "auto", "line 2: must have the format aya"),
    "no answers": ([{"messages": [{"role": "user", "content": "a"}]}] * 3, "auto", r"has an answer \(3 no answer\)"),
    "not JSON": (["{"], "auto", "line 1: not JSON"),
    "no tree": ([ONE["oasst messages"][0] | {"message_tree_id": None}], "auto", "line 1: has no message_tree_id"),
    "family": ([ONE["aya"][0] | {"family": 3}], "auto", "line 1: the field 'family' must be text, got 3"),
    "NUL": ([{"inputs": "a\0", "targets": "b"}], "auto", "line 1: a message contains a NUL character. Remove it."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_hold_no_conversations_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    rows, wanted, says = REFUSED[case]
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    with pytest.raises(BadInput, match=f"^sft.path.*{says}") as error:
        conversations.own_conversations(str(tmp_path / "mine.jsonl"), wanted)
    assert "\n" not in str(error.value)


def turns(*texts: str) -> Iterator[tuple[str, str]]:
    """Texts as turns: `s:` of the system, `q:` of a user, `a:` of an assistant."""
    roles = {"s": "system", "q": "user", "a": "assistant"}
    return ((roles[text[0]], text[2:]) for text in texts)


@pytest.mark.parametrize(
    ("given", "kept", "shortened"),
    [
        (["q:Q1", "q: Q2", "a:A1"], ["Q1\n\nQ2", "A1"], False),
        (["a:hello", "q:Q1", "a:A1", "q:Q2"], ["Q1", "A1"], True),
        (["s:Sys.", "a:hello", "q:Q1", "a:A1"], ["Sys.", "Q1", "A1"], True),
        (["s:", "q:Q1", "a:A1"], ["", "Q1", "A1"], False),
        (["q:Q1", "a:A1", "q:Q2", "a: \n", "q:Q3", "a:A3"], ["Q1", "A1"], True),
        (["q:Q1", "a:A1", "q:", "a:A2"], ["Q1", "A1"], True),
    ],
)
def test_the_normal_form(given: list[str], kept: list[str], shortened: bool) -> None:
    made = normalise_turns(turns(*given))
    assert [message["content"] for message in made.messages] == kept and made.shortened is shortened


@pytest.mark.parametrize("given", [[], ["q:Q1"], ["q:Q1", "a: ", "q:Q2", "a:A2"], ["s:S", "a:A"]])
def test_nothing_is_left_without_an_answer(given: list[str]) -> None:
    with pytest.raises(LeftOut, match="^no_answer$"):
        normalise_turns(turns(*given))


USER, SAYS = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
ODD: dict[str, tuple[dict[str, Any], str]] = {
    "a tool's turn": ({"messages": [USER, {"role": "tool", "content": "1"}, SAYS]}, "tools"),
    "a call": ({"messages": [USER, SAYS | {"tool_calls": [{"name": "f"}]}]}, "tools"),
    "tools beside": ({"messages": [USER, SAYS], "tools": [{"name": "f"}]}, "tools"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAYS]}, "images"),
    "another role": ({"messages": [USER, {"role": "narrator", "content": "x"}, SAYS]}, "roles"),
    "a later system message": ({"messages": [USER, SAYS, {"role": "system", "content": "x"}, USER, SAYS]}, "roles"),
    "no list": ({"messages": "Q"}, "malformed"),
    "no messages": ({"messages": [1]}, "malformed"),
    "null": ({"messages": None}, "no_answer"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_no_conversation_is_made_of_is_counted_by_reason(case: str, tmp_path: Path) -> None:
    row, reason = ODD[case]
    write_jsonl(tmp_path / "mine.jsonl", [{"messages": [USER, SAYS]}, row])
    made, counts = conversations.own_conversations(str(tmp_path / "mine.jsonl"), "auto")
    assert len(made) == 1 and counts == {reason: 1}


def test_system_columns_and_inputs_are_read() -> None:
    read: Callable[[dict[str, Any]], Any] = conversations.FORMATS["alpaca"].turns
    row = {"system": "S", "instruction": "Translate.", "input": ANSWER, "output": "water"}
    assert list(read(row)) == [("system", "S"), ("user", f"Translate.\n\n{ANSWER}"), ("assistant", "water")]
    share = conversations.FORMATS["sharegpt"].turns
    assert next(share({"system": "S", "conversations": []})) == ("system", "S")
