"""A method of the config + the checkpoints of a cell -> a merge recipe as the merge room reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHARED = ("weight", "density", "gamma", "epsilon")  # settings of a model that a recipe may state once for both
MODELS = ("ct", "sft")


def expand(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings: `{"models.sft.weight": 2}` is `{"models": {"sft": {"weight": 2}}}`."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *folders, last = key.split(".")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        if isinstance(value, Mapping) and isinstance(place.get(last), dict):
            place[last] |= expand(value)
        else:
            place[last] = expand(value) if isinstance(value, Mapping) else value
    return nested


def complete(settings: Mapping[str, Any], base: Path, ct: Path, sft: Path, seed: int) -> dict[str, Any]:
    """What `merge.recipe.Recipe.from_dict` takes: paths, the settings that both models share, and the cell's seed where the method draws."""
    from merge.recipe import METHODS

    recipe = expand(settings)
    shared = {name: recipe.pop(name) for name in SHARED if name in recipe}
    own = recipe.pop("models", {})
    models = {
        name: {"path": str(path), **shared, **own.pop(name, {})} for name, path in zip(MODELS, (ct, sft), strict=True)
    }
    method = METHODS.get(recipe.get("method", ""))
    if method and method.sparsify in ("random", "ranked"):
        recipe.setdefault("seed", seed)
    return {**recipe, "base": str(base), "models": {**models, **own}}
