"""What a schema refuses, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError


def suggestion(name: str, known: list[str]) -> str:
    """The nearest of the known names as a question, or what is known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def one_line(error: ValidationError, composed: Mapping[str, Any]) -> str:
    """The first thing that a schema refuses: key, value and what would be right."""
    first = error.errors()[0]
    location = list(first["loc"])
    if location[:1] == ["corpus"] and location[1:2] in (["source"], ["bible"], ["cipher"], ["files"], ["hub"]):
        location.pop(1)  # pydantic's note of which kind of corpus it is
    named = [str(part) for part in location]
    key = ".".join(part for part in named if not part.startswith("literal["))  # pydantic's note of a choice of types
    if first["type"] == "union_tag_invalid":
        return f"corpus.source={first['ctx']['tag']}: choose {first['ctx']['expected_tags']}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        siblings: Any = composed
        for part in location[:-1]:
            siblings = siblings[part]
        return f"{key}: unknown key; {suggestion(named[-1], [name for name in siblings if name != named[-1]])}"
    if first["type"] == "missing":
        return f"{key} is missing; every key needs a value"
    of_section = isinstance(first["input"], BaseModel | dict) and first["type"] == "value_error"
    if of_section and not message.startswith("give "):  # of a whole section, which names its key; else of one value
        return f"{key}.{message}" if key else message
    value = "null" if first["input"] is None else first["input"]
    if isinstance(first["input"], bool) and first["type"] in ("string_type", "literal_error"):
        message += "; YAML reads on, off, yes and no as true or false, so put quotes around such a word"
    return f"{key}={value}: {message[0].lower()}{message[1:]}"
