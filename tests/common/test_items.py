"""The record of an item: written as it is read."""

from typing import Any

import pytest

from common.items import Item

ITEM = Item("next_xx.0", "Which word?", ("a", "b"), 1, 0, "next", "xx", "chapter 1")


def test_an_item_is_read_as_it_was_written() -> None:
    row = ITEM.as_row()
    assert list(row) == ["id", "prompt", "choices", "answer", "trivial", "family", "language", "document"]
    assert row["choices"] == ["a", "b"] and Item.from_row(row) == ITEM
    assert Item.from_row({**row, "more": 1}) == ITEM
    assert Item.from_row({name: value for name, value in row.items() if name != "document"}).document == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": " "}, "'id' must be a text that is not empty"),
        ({"choices": ["a"]}, "'choices' must be a list of two texts or more"),
        ({"choices": ["a", ""]}, "'choices' must be a list of two texts or more"),
        ({"answer": 2}, "'answer' must be the number of a choice, 0 to 1, not 2"),
        ({"document": 3}, "'document' must be a text"),
        ({"trivial": True}, "'trivial' must be the number of a choice, 0 to 1, not True"),
    ],
)
def test_a_row_that_is_no_item_says_why(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Item.from_row({**ITEM.as_row(), **change})
