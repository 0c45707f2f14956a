"""A method of the config + the checkpoints of a cell -> a merge recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge import Recipe
from merge.methods import METHODS, MODEL_DEFAULTS
from pipeline.baselines import MODEL, merged_roles

if TYPE_CHECKING:
    from pipeline.execute import Job


def expand(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested mappings: `{"models.sft.weight": 2}` is `{"models": {"sft": {"weight": 2}}}`."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *folders, last = key.split(".")
        section = nested
        for folder in folders:
            section = section.setdefault(folder, {})
        if isinstance(value, Mapping) and isinstance(section.get(last), dict):
            section[last] |= expand(value)
        else:
            section[last] = expand(value) if isinstance(value, Mapping) else value
    return nested


def complete(settings: Mapping[str, Any], base: Path, merged: Mapping[str, Path], seed: int) -> dict[str, Any]:
    """Return the input of `Recipe.from_dict`: paths, shared settings, and the cell's seed if something is drawn."""
    recipe = expand(settings)
    shared = {name: recipe.pop(name) for name in MODEL_DEFAULTS if name in recipe}
    by_model = recipe.pop("models", {})
    models = {name: {"path": str(path), **shared, **by_model.pop(name, {})} for name, path in merged.items()}
    method = METHODS.get(recipe.get("method", ""))
    if method and (method.seeded or any(model.get("random_signs") for model in models.values())):
        recipe.setdefault("seed", seed)
    return {**recipe, "base": str(base), "models": {**models, **by_model}}


def identity(recipe: Recipe) -> str:
    """Return the same for recipes of the same models that give the same merge by another name or scale.

    A weighted average is task arithmetic by weights that sum to 1, and TIES with a slack of 0 is TIES.
    """
    described = recipe.to_dict()
    models = described["models"]
    weights = {name: model.get("weight") for name, model in models.items()}
    numbers = [*weights.values(), described.get("lambda", 1.0)]  # or gradients and rules, alike only as they stand
    total = sum(weights.values()) if all(isinstance(number, float) for number in numbers) else 0.0
    if recipe.method in ("linear", "task_arithmetic") and total:
        scale = described.pop("lambda", 1.0) / (total if described.pop("normalize") else 1.0)
        for name, model in models.items():
            model["weight"] = round(weights[name] * scale, 9)
        if recipe.method == "task_arithmetic" or round(sum(model["weight"] for model in models.values()), 6) == 1:
            described["method"] = "task vectors"
            models |= {name: _said(model) for name, model in models.items()}
    elif described.get("slack") == 0:
        described |= {"method": described["method"].removesuffix("_sv"), "protect": []}
    return json.dumps(_said(described), sort_keys=True)


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Drop settings that are off, for which only some methods have a key."""
    return {key: value for key, value in settings.items() if value}


def recipe_of(job: Job[Any, Any], settings: Mapping[str, Any], seed: int) -> Recipe:
    """The merge of a job's checkpoints by these settings (one of a method's tries)."""

    parents = job.stage.parents
    base, names = job.checkpoint(MODEL).absolute(), merged_roles(parents)
    recipe = complete(settings, base, {name: job.checkpoint(name).absolute() for name in names}, seed)
    for name in names:
        adapter = job.folders[name].absolute() / "adapter"
        started_from = parents[name].parents.get("model")
        on_base = started_from is None or started_from.key == parents[MODEL].key
        if adapter.is_dir() and on_base:  # LoRA: a few megabytes are read beside the base, not a second model
            recipe["models"][name] |= {"path": str(base), "adapter": str(adapter)}
    return Recipe.from_dict(recipe, where=str(job.stage))
