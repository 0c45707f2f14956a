"""A grid of settings over one recipe: `slack=0,0.5,1 density=0.2,0.5` gives six recipes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from common.errors import BadInput, suggestion
from common.validation import parse_yaml
from merge.method_table import MODEL_DEFAULTS
from merge.recipe import Recipe


def expand(recipe: Recipe, axes: Sequence[str]) -> list[tuple[str, Recipe]]:
    """Return (label, recipe) for every combination, with labels such as `slack=0.5,density=0.2`.

    An axis is key=value,value,...: a key of the recipe, a per-model key (set for all models), or model.key. No setting
    is on two axes, and no value twice on one, so that labels are true and no two are equal. Raises BadInput.
    """
    parsed = [_axis(axis) for axis in axes]
    _check_apart([key for key, _ in parsed], recipe)
    labelled = []
    for combination in itertools.product(*(values for _, values in parsed)):
        data = recipe.to_dict()
        chosen = list(zip((key for key, _ in parsed), combination, strict=True))
        for key, value in chosen:
            _set(data, key, value)
            for part in data.get("slices", ()):
                if "." in key or key in MODEL_DEFAULTS or key in part:
                    _set(part, key, value)
        label = ",".join(f"{key}={value}" for key, value in chosen)
        labelled.append((label, Recipe.from_dict(data, where=f"--grid {label}")))
    return labelled


def _axis(text: str) -> tuple[str, list[Any]]:
    key, equals, listed = text.partition("=")
    if not equals or not key or not listed:
        raise BadInput(f"--grid {text}: expected key=value,value,... such as slack=0,0.5,1.")
    try:
        values = [parse_yaml(value) for value in listed.split(",")]
    except BadInput as error:
        raise BadInput(f"--grid {text}: {error}") from None
    for i, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise BadInput(f"--grid {text}: expected numbers and words, got {value!r}.")
        if value in values[:i]:
            raise BadInput(f"--grid {text}: {value} is listed twice. List it once.")
    if "/" in key or any("/" in str(value) for value in values):
        raise BadInput(
            f"--grid {text}: keys and values become names of folders, so they must not contain /. Remove it."
        )
    return key, values


def _check_apart(keys: Sequence[str], recipe: Recipe) -> None:
    """Reject two axes that set the same thing: the later one would win, and labels would be wrong."""
    seen: dict[tuple[str, str], str] = {}
    for key in keys:
        model, dot, model_key = key.rpartition(".")
        names = [each.name for each in recipe.models]
        if dot and model not in names:
            raise BadInput(f"--grid {key}: no such model, got {model!r}. {suggestion(model, names)}")
        places = [(model, model_key)] if dot else [("", key)]
        if not dot and key in MODEL_DEFAULTS:
            places = [(name, key) for name in names]
        for place in places:
            if place in seen:
                other = seen[place]
                raise BadInput(f"--grid {other}=… {key}=…: both set {'.'.join(filter(None, place))}. Pass one of them.")
            seen[place] = key


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    model, dot, model_key = key.rpartition(".")
    if dot:
        if model in data["models"]:
            data["models"][model][model_key] = value
    elif key in MODEL_DEFAULTS:
        for entry in data["models"].values():
            entry[key] = value
    else:
        data[key] = value
