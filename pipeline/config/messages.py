"""Errors of the schema, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from common.choices import suggestion
from common.parsing import sentence


def one_line(error: ValidationError, composed: Mapping[str, Any]) -> str:
    """Describe the first error of a schema: key, value, what is wrong, and what to do."""
    first = error.errors()[0]
    location = list(first["loc"])
    if location[:1] == ["corpus"] and location[1:2] in (["source"], ["bible"], ["cipher"], ["files"], ["hub"]):
        location.pop(1)  # pydantic's note of which kind of corpus it is
    named = [str(part) for part in location]
    key = ".".join(part for part in named if not part.startswith("literal["))  # pydantic's note of a choice of types
    if first["type"] == "union_tag_invalid":
        return f"corpus.source={first['ctx']['tag']}: must be one of {first['ctx']['expected_tags']}."
    message = sentence(first["msg"])
    if first["type"] == "extra_forbidden":
        siblings: Any = composed
        for part in location[:-1]:
            siblings = siblings[part]
        return f"{key}: unknown key. {suggestion(named[-1], [name for name in siblings if name != named[-1]])}"
    if first["type"] == "missing":
        return f"{key}: missing. Set a value (null, if the key allows it)."
    of_section = isinstance(first["input"], BaseModel | dict) and first["type"] == "value_error"
    if of_section and not message.startswith("must be "):  # of a whole section, which names its key; else of one value
        return f"{key}.{message}" if key else message
    value = "null" if first["input"] is None else first["input"]
    if isinstance(first["input"], bool) and first["type"] in ("string_type", "literal_error"):
        message += " YAML reads on, off, yes and no as true or false: quote such a word."
    return f"{key}={value}: {message}"
