"""Types of a recipe's values: how each is read from YAML, and what is said of one that is wrong."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, ValidationError, ValidationInfo

from common.errors import BadInput
from common.hub import PREFIX
from merge import per_tensor
from merge.method_table import METHODS
from merge.per_tensor import Setting

DTYPES = ("float32", "bfloat16", "float16", "float64")
LARGEST, SMALLEST = 3.4e38, 1.2e-38  # of float32, about
TOKENIZERS = ("required", "optional", "union", "base")  # or a model's name
TEMPLATES = ("auto", "chatml")  # or a text


class Value(BaseModel):
    """A frozen value none of whose keys may be added."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def folder(value: Any, info: ValidationInfo) -> Path:
    """A path; relative ones start at the context's `root`, models of the hub stay as they are."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise BadInput(f"expected a folder; got {value!r}")
    root = (info.context or {}).get("root")
    return Path(value) if root is None or str(value).startswith(PREFIX) else root / value


def setting(value: Any) -> Setting:
    """A number, a gradient over depth, or rules."""
    return per_tensor.parse(value, "")


def finite(value: Setting) -> Setting:
    """Refuses NaN and infinity, and what would be infinite in the arithmetic."""
    for number in per_tensor.values(value):
        if not math.isfinite(number):
            raise BadInput(f"expected a finite number; got {number}")
        if abs(number) > LARGEST:
            raise BadInput(f"expected a number of at most {LARGEST:g}, the largest of float32; got {number:g}")
    return value


def share_kept(value: Setting) -> Setting:
    """A density."""
    for number in per_tensor.values(value):
        if not 0 < number <= 1:
            raise BadInput(f"the share kept, above 0 and at most 1; got {number:g}")
        if number < SMALLEST:
            raise BadInput(f"the share kept, at least {SMALLEST:g}, the smallest of float32; got {number:g}")
    return value


def share_dropped(value: Setting) -> Setting:
    """A gamma."""
    for number in per_tensor.values(value):
        if not 0 <= number < 1:
            raise BadInput(f"the share of largest values dropped, from 0 to below 1; got {number:g}")
    return value


def slack(value: Any) -> float:
    """ξ, infinity included."""
    number = per_tensor.number(value, "")
    if math.isnan(number) or number < 0:
        raise BadInput(f"0 (TIES) or more, .inf allowed; got {number:g}")
    return number


def share(value: Any) -> float:
    """A share of parameters, the same for all tensors."""
    number = per_tensor.number(value, "")
    if not 0 < number <= 1:
        raise BadInput(f"a share of parameters, above 0 and at most 1; got {number:g}")
    return number


def norm(value: Any) -> float | None:
    """A multiple of a norm, or none."""
    if value is None:
        return None
    number = per_tensor.number(value, "")
    if not 0 < number <= LARGEST:
        raise BadInput(f"a multiple of norm_of's norm, above 0 and at most {LARGEST:g}; got {number:g}")
    return number


def names(value: Any) -> tuple[str, ...]:
    """One name or a list of them."""
    listed = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise BadInput(f"expected a list of model names; got {value!r}")
    return tuple(listed)


def layers(value: Any) -> tuple[int, int] | None:
    """A layer or a range of them, first and last."""
    return per_tensor.layer_range(value, "")


def boolean(value: Any) -> bool:
    """YAML's true or false, and nothing that only looks like it."""
    if not isinstance(value, bool):
        raise BadInput(f"true or false; got {value!r}")
    return value


def whole_number(value: Any) -> int:
    """An integer, and neither true nor 1.0."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**64:
        raise BadInput("expected a whole number of at most 64 bits")
    return value


def word(value: Any) -> str:
    """A word whose meaning depends on the rest."""
    if not isinstance(value, str) or not value:
        raise BadInput(f"expected a word; got {value!r}")
    return value


def name(value: Any) -> str | None:
    """A model's name, or none."""
    return None if value is None else word(value)


def template(value: Any) -> str | None:
    """A chat template, its name, or none."""
    if value is None:
        return None
    if not isinstance(value, str) or not ("{" in value or value in TEMPLATES):
        raise BadInput(f"one of {', '.join(TEMPLATES)}, or the text of a template (Jinja); got {value!r}")
    return value


def one_of(*choices: str) -> PlainValidator:
    """A validator of one of some words."""

    def choice(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise BadInput(f"one of {', '.join(choices)}; got {value!r}")
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
    """Describe keys that a method does not have, with a suggestion for a misspelt one; None if there are none."""
    unknown = sorted(set(map(str, entry)) - set(known))
    if not unknown:
        return None
    of_others = {key for other in METHODS.values() for key in (*other.recipe_keys, *other.model_keys)}
    near = [] if unknown[0] in of_others else difflib.get_close_matches(unknown[0], known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"its keys are {', '.join(known)}"
    return f"method {method} has no key {', '.join(unknown)}; {remedy}"


def one_line(error: ValidationError, where: str, data: Any) -> str:
    """The first thing that is refused: file, key, and what would be right. data: the recipe that was read."""
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
    # of a list of rules the message goes on with the place inside the value: `lambda` + `[0].kind: one of ...`
    return f"{where}: {'.'.join(location)}{'' if message[0] in '[.:' else ': '}{message}"
