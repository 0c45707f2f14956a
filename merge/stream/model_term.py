"""One model's part in one tensor: its settings there, and which ranks of its magnitudes have to be known."""

from __future__ import annotations

from dataclasses import dataclass

from merge import select
from merge.engine.outputs import Output, Parent, parent_of
from merge.method_table import MAGNITUDE, MAGNITUDE_OUTLIERS, Sparsifier
from merge.per_tensor import resolve
from merge.recipe import ModelRef, Recipe


@dataclass(frozen=True)
class ModelTerm:
    """One model's part in one tensor.

    ranks: how many of the largest magnitudes to keep, then (magnitude_outliers) to drop again. scope: among how many of
    them slack protects it, 0 for all. measured: whether the tensor's rms is asked for. scale: of a copy.
    """

    name: str
    parent: Parent
    weight: float
    density: float
    epsilon: float
    ranks: tuple[int, ...]
    scale: float = 1.0
    random_signs: bool = False
    scope: int = 0
    measured: bool = False


def model_term(recipe: Recipe, model: ModelRef, output: Output) -> ModelTerm:
    """Resolve rules and gradients of one model for `output`."""
    name = output.name_in(parent_of(model))
    weight, density, gamma, epsilon, scale = (
        resolve(getattr(model, key), name, output.depth, key=f"models.{model.name}.{key}")
        for key in ("weight", "density", "gamma", "epsilon", "scale")
    )
    shielded = recipe.slack > 0 and model.name in recipe.protect
    return ModelTerm(
        model.name,
        parent_of(model),
        weight,
        density,
        epsilon,
        _ranks(recipe.spec.sparsify, density, gamma, output.numel),
        scale,
        model.random_signs,
        scope=select.kept(recipe.slack_share, output.numel) if shielded and recipe.slack_scope == "top" else 0,
        measured=shielded and recipe.slack_scale == "rms",
    )


def _ranks(sparsifier: Sparsifier | None, density: float, gamma: float, numel: int) -> tuple[int, ...]:
    if density >= 1 or sparsifier not in (MAGNITUDE, MAGNITUDE_OUTLIERS):
        return ()
    if sparsifier == MAGNITUDE:
        return (select.kept(density, numel),)
    # mergekit's counts: where the outliers would eat into the share kept, fewer outliers are dropped.
    middle = int(density * numel)
    bottom = max(0, numel - middle - int(gamma * numel))
    return (numel - bottom, numel - bottom - middle)
