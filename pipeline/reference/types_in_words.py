"""The type and bounds of a key of the config, in words. Pure."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from common.units import parse_bytes, parse_tokens
from pipeline.config.cell import iso_date
from pipeline.config.scoring import known_arm, known_role
from pipeline.run.cluster.site import hours

NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
BY_VALIDATOR = {
    parse_tokens: "tokens",
    parse_bytes: "bytes",
    iso_date: "date",
    hours: "hours, or HH:MM:SS",
    known_arm: "a checkpoint",
    known_role: "a checkpoint",
}
BOUNDS = ((Gt, "gt", "above"), (Ge, "ge", "at least"), (Lt, "lt", "below"), (Le, "le", "at most"))


def of_field(field: FieldInfo) -> str:
    """The type of a field, such as `number, above 0 and below 1`."""
    return described(field.annotation, field.metadata)


def described(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in words; `metadata` is what pydantic checks beside it."""
    metadata = list(metadata)
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        metadata += [each for one in more for each in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return described(inner, metadata)
    for one in metadata:
        if isinstance(one, (BeforeValidator, AfterValidator)) and one.func in BY_VALIDATOR:
            return BY_VALIDATOR[one.func]  # type: ignore[index]
    return " ".join([_plain(annotation), *_bounds(metadata)])


def _plain(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _either([f"`{value}`" for value in arguments])
    if origin in (Union, types.UnionType):
        return ", or ".join(described(one) for one in arguments)
    if origin in (list, tuple):
        return f"list of {described(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {described(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return NAMES.get(annotation, "any value")


def _either(options: list[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"


def _bounds(metadata: Iterable[Any]) -> list[str]:
    limits = [
        f"{word} {_number(getattr(one, name))}"
        for kind, name, word in BOUNDS
        for one in metadata
        if isinstance(one, kind)
    ]
    return [" and ".join(limits)] if limits else []


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
