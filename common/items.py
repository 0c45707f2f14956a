"""The record of an evaluation item: a prompt with choices.

train/data writes items and eval/ reads them; both import the record from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TEXTS = ("id", "prompt", "family", "language")
NUMBERS = ("answer", "trivial")


@dataclass(frozen=True)
class Item:
    """One item; a line of `<family>_<language>.<split>.jsonl`."""

    id: str  # its name, once in a file
    prompt: str  # what the model sees; a choice follows after a space
    choices: tuple[str, ...]  # two or more
    answer: int  # which choice is right, from 0
    trivial: int  # which choice a baseline takes that does not read the prompt
    family: str  # what kind of question it is
    language: str  # code of the prompt's language
    document: str = ""  # id of the text it was made from: items of one are not independent; empty: it stands alone

    def as_row(self) -> dict[str, Any]:
        """Return the item as JSON stores it."""
        return asdict(self) | {"choices": list(self.choices)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Item:
        """Build the item of a row of JSON. Raises ValueError that states what is wrong."""
        if wrong := item_error(row):
            raise ValueError(wrong)
        fields = {name: row[name] for name in (*TEXTS, *NUMBERS)}
        return cls(**fields, choices=tuple(row["choices"]), document=row.get("document", ""))


def text_error(row: Mapping[str, Any], fields: Sequence[str]) -> str | None:
    """Describe what is wrong with the text fields of a row; None if nothing is."""
    for field in fields:
        if not isinstance(row.get(field), str) or not row[field].strip():
            return f"{field!r} must be a text that is not empty"
    return None


def item_error(row: Mapping[str, Any]) -> str | None:
    """Describe what is wrong with an item's row; None if nothing is."""
    if wrong := text_error(row, TEXTS):
        return wrong
    choices = row.get("choices")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        return "'choices' must be a list of two texts or more, none of them empty"
    for field in NUMBERS:
        number = row.get(field)
        if type(number) is not int or not 0 <= number < len(choices):
            return f"{field!r} must be the number of a choice, 0 to {len(choices) - 1}, not {number!r}"
    if not isinstance(row.get("document", ""), str):
        return "'document' must be a text"
    return None
