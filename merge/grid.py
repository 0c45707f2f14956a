"""A grid of settings over one recipe: `slack=0,0.5,1 density=0.2,0.5` is six recipes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import yaml

from common.errors import BadInput
from merge.method_table import MODEL_DEFAULTS
from merge.recipe import Recipe


def expand(recipe: Recipe, axes: Sequence[str]) -> list[tuple[str, Recipe]]:
    """(label, recipe) for every combination, labels such as `slack=0.5,density=0.2`.

    An axis is key=value,value,...: a key of the recipe, a per-model key (set for all models), or model.key. Raises
    BadInput.
    """
    parsed = [_axis(axis) for axis in axes]
    labelled = []
    for combination in itertools.product(*(values for _, values in parsed)):
        data = recipe.to_dict()
        chosen = list(zip((key for key, _ in parsed), combination, strict=True))
        for key, value in chosen:
            _set(data, key, value)
        label = ",".join(f"{key}={value}" for key, value in chosen)
        labelled.append((label, Recipe.from_dict(data, where=f"--grid {label}")))
    return labelled


def _axis(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise BadInput(f"--grid {text}: expected key=value,value,... such as slack=0,0.5,1")
    return key, [yaml.safe_load(value) for value in values.split(",")]


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    model, dot, model_key = key.rpartition(".")
    if dot:
        if model not in data["models"]:
            raise BadInput(f"--grid {key}: no model is called {model!r}; the models are {', '.join(data['models'])}")
        data["models"][model][model_key] = value
    elif key in MODEL_DEFAULTS:
        for entry in data["models"].values():
            entry[key] = value
    else:
        data[key] = value
