"""The slices of a recipe, as data: each is completed with the recipe's settings, and is then a recipe itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import BadInput, suggestion
from merge.method_table import Method


def complete(data: Mapping[str, Any], method: Method) -> list[dict[str, Any]]:
    """Complete every slice and its models with the recipe's settings.

    The nearest setting of a model counts: the slice's model, the slice, the recipe's model, the recipe.

    Raises BadInput for an invalid slice, and for keys that a slice cannot have.
    """
    listed, models = data["slices"], data.get("models")
    if not isinstance(listed, list) or not listed:
        raise BadInput("slices: expected a list of {layers: 0-3, models: {name: {...}}}.")
    if not isinstance(models, Mapping):
        raise BadInput("models: expected a mapping of names to {path: folder}.")
    by_name = {str(name): entry for name, entry in models.items()}
    shared = {key: value for key, value in data.items() if key not in ("slices", "models")}
    known = {"base", "layers", "models", *method.recipe_keys, *method.model_keys}
    completed = []
    for i, part in enumerate(listed):
        at = f"slices[{i}]"
        if not isinstance(part, Mapping) or not isinstance(part.get("models"), Mapping):
            raise BadInput(f"{at}: expected {{layers: 0-3, models: {{name: {{...}}}}}}.")
        if unknown := sorted(set(map(str, part)) - known):
            raise BadInput(f"{at}: a slice has no key {unknown[0]}. {suggestion(unknown[0], sorted(known))}")
        of_all = {key: part[key] for key in method.model_keys if key in part}
        own = {str(name): _model(name, entry, by_name, of_all, at) for name, entry in part["models"].items()}
        completed.append({**shared, **part, "models": own})
    return completed


def _model(name: Any, entry: Any, models: Mapping[str, Any], of_all: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Return a model of a slice, with the settings of the slice (of_all) and of the recipe."""
    known = models.get(str(name))
    if not isinstance(known, Mapping):
        raise BadInput(f"{at}.models.{name}: no such model. {suggestion(name, models)}")
    if entry is not None and not isinstance(entry, Mapping):
        raise BadInput(f"{at}.models.{name}: expected {{layers: 0-3, ...}}.")
    if entry and ("path" in entry or "adapter" in entry):
        raise BadInput(f"{at}.models.{name}: path and adapter belong under the recipe's own models. Move them there.")
    return {**known, **of_all, **(entry or {})}
