"""Types of a recipe's values: their parsing from YAML, and their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, ValidationError, ValidationInfo

from common.errors import BadInput, listed, suggestion
from common.hub import PREFIX
from merge import per_tensor
from merge.method_table import METHODS
from merge.per_tensor import Setting

DTYPES = ("float32", "bfloat16", "float16", "float64")
LARGEST, SMALLEST = 3.4e38, 1.2e-38  # of float32, about
TOKENIZERS = ("required", "optional", "union", "base")  # or a model's name
TEMPLATES = ("auto", "chatml")  # or a text


class Value(BaseModel):
    """A frozen value that accepts no further keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def folder(value: Any, info: ValidationInfo) -> Path:
    """Parse a path; relative ones start at the context's `root`, models of the Hub stay unchanged."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise BadInput(f"expected a folder, got {value!r}.")
    root = (info.context or {}).get("root")
    return Path(value) if root is None or str(value).startswith(PREFIX) else root / value


def setting(value: Any) -> Setting:
    """Parse a number, a gradient over depth, or rules."""
    return per_tensor.parse(value, "")


def finite(value: Setting) -> Setting:
    """Reject NaN, infinity, and numbers that overflow float32."""
    for number in per_tensor.values(value):
        if not math.isfinite(number):
            raise BadInput(f"expected a finite number, got {number}.")
        if abs(number) > LARGEST:
            raise BadInput(f"expected a number of at most {LARGEST:g}, the largest number of float32, got {number:g}.")
    return value


def share_kept(value: Setting) -> Setting:
    """Check a density."""
    for number in per_tensor.values(value):
        if not 0 < number <= 1:
            raise BadInput(f"must be above 0 and at most 1 (the fraction of parameters that is kept), got {number:g}.")
        if number < SMALLEST:
            raise BadInput(f"must be at least {SMALLEST:g}, the smallest number of float32, got {number:g}.")
    return value


def share_dropped(value: Setting) -> Setting:
    """Check a gamma."""
    for number in per_tensor.values(value):
        if not 0 <= number < 1:
            raise BadInput(
                f"must be from 0 to below 1 (the fraction of largest values that is dropped), got {number:g}."
            )
    return value


def slack(value: Any) -> float:
    """Parse ξ, which may be infinite."""
    number = per_tensor.number(value, "")
    if math.isnan(number) or number < 0:
        raise BadInput(f"must be 0 or larger (.inf is allowed), got {number:g}.")
    return number


def share(value: Any) -> float:
    """Parse a fraction of parameters, the same for all tensors."""
    number = per_tensor.number(value, "")
    if not 0 < number <= 1:
        raise BadInput(f"must be above 0 and at most 1 (a fraction of the parameters), got {number:g}.")
    return number


def norm(value: Any) -> float | None:
    """Parse a multiple of a norm, or null."""
    if value is None:
        return None
    number = per_tensor.number(value, "")
    if not 0 < number <= LARGEST:
        raise BadInput(f"must be above 0 and at most {LARGEST:g} (a multiple of norm_of's norm), got {number:g}.")
    return number


def names(value: Any) -> tuple[str, ...]:
    """Parse one name or a list of names."""
    listed = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise BadInput(f"expected a list of model names, got {value!r}.")
    return tuple(listed)


def layers(value: Any) -> tuple[int, int] | None:
    """Parse a layer or a range of layers, first and last."""
    return per_tensor.layer_range(value, "")


def boolean(value: Any) -> bool:
    """Accept only YAML's true and false."""
    if not isinstance(value, bool):
        raise BadInput(f"must be true or false, got {value!r}.")
    return value


def whole_number(value: Any) -> int:
    """Accept an integer, but not true or 1.0."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**64:
        raise BadInput(f"expected a whole number of at most 64 bits, got {value!r}.")
    return value


def word(value: Any) -> str:
    """Accept a word whose meaning depends on other keys."""
    if not isinstance(value, str) or not value:
        raise BadInput(f"expected a word, got {value!r}.")
    return value


def name(value: Any) -> str | None:
    """A model's name, or none."""
    return None if value is None else word(value)


def template(value: Any) -> str | None:
    """Accept a chat template, its name, or null."""
    if value is None:
        return None
    if not isinstance(value, str) or not ("{" in value or value in TEMPLATES):
        raise BadInput(f"must be one of {', '.join(TEMPLATES)}, or the text of a template (Jinja), got {value!r}.")
    return value


def one_of(*choices: str) -> PlainValidator:
    """Return a validator that accepts the given words."""

    def choice(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise BadInput(f"must be one of {', '.join(choices)}, got {value!r}.")
        return str(value)

    return PlainValidator(choice)


Folder = Annotated[Path, PlainValidator(folder)]
AnySetting = Annotated[Setting, PlainValidator(setting)]
Finite = Annotated[Setting, PlainValidator(setting), AfterValidator(finite)]
Density = Annotated[Setting, PlainValidator(setting), AfterValidator(share_kept)]
Gamma = Annotated[Setting, PlainValidator(setting), AfterValidator(share_dropped)]
Slack = Annotated[float, PlainValidator(slack)]
Form = Annotated[str, one_of("ratio", "difference")]
Scale = Annotated[str, one_of("none", "rms")]
OnSlack = Annotated[str, one_of("protect", "both")]
Scope = Annotated[str, one_of("all", "top")]
Share = Annotated[float, PlainValidator(share)]
Norm = Annotated[float | None, PlainValidator(norm)]
Layers = Annotated[tuple[int, int] | None, PlainValidator(layers)]
Names = Annotated[tuple[str, ...], PlainValidator(names)]
Boolean = Annotated[bool, PlainValidator(boolean)]
WholeNumber = Annotated[int, PlainValidator(whole_number)]
Election = Annotated[str, one_of("unweighted", "weighted")]
Rescale = Annotated[str, one_of("none", "expectation", "l1")]
ComputeDtype = Annotated[str, one_of(*DTYPES, "inputs")]
OutDtype = Annotated[str, one_of(*DTYPES, "base", "compute")]
Tokenizer = Annotated[str, PlainValidator(word)]
Template = Annotated[str | None, PlainValidator(template)]
Name = Annotated[str | None, PlainValidator(name)]


def unknown_keys(entry: Mapping[str, Any], known: Sequence[str], method: str) -> str | None:
    """Describe keys that a method does not have, and suggest what to do; None if there are none."""
    unknown = sorted(set(map(str, entry)) - set(known))
    if not unknown:
        return None
    name = unknown[0]
    having = [other.name for other in METHODS.values() if name in (*other.recipe_keys, *other.model_keys)]
    remedy = f"Leave it out, or choose a method that has it: {listed(having)}." if having else suggestion(name, known)
    return f"method {method} has no key {name}. {remedy}"


def one_line(error: ValidationError, where: str, data: Any) -> str:
    """Describe the first error: file, key, and what to do. data: the recipe that was read."""
    first = error.errors()[0]
    location: list[str] = []
    for part in first["loc"]:
        if not isinstance(part, int):
            location.append(str(part))
        elif location[-1] == "slices":
            location[-1] = f"slices[{part}]"
            data = data["slices"][part]
        else:  # of models, which are listed by name
            location.append(str(list(data["models"])[part]))
    message = first["msg"].removeprefix("Value error, ")
    if not location:
        return f"{where}: {message}"
    # for a list of rules the message begins with the place inside the value: `lambda` + `[0].kind: one of ...`
    return f"{where}: {'.'.join(location)}{'' if message[0] in '[.:' else ': '}{message}"
