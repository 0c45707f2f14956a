"""Whether a recipe's settings fit the tensors that they are for: rules that match, depths that are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from common.errors import BadInput
from merge.io.checkpoint import HEAD
from merge.per_tensor import Rule, Setting, layer_of, resolve, stack_of
from merge.recipe import Recipe

if TYPE_CHECKING:
    from merge.stream.tensor_plan import Output


def check_settings(recipes: Sequence[Recipe], outputs: Sequence[Output], tied: bool) -> None:
    """Resolve every setting for every tensor that is merged.

    tied: the head is the embedding; a rule for heads may then match nothing. Raises BadInput for a rule that matches no
    tensor, a tensor that no rule matches, a gradient where layers are not known, and weights to be averaged whose sum
    is zero.
    """
    names = [output.name for output in outputs if output.floating]
    if not names:
        raise BadInput("the checkpoints hold no floating point tensors: there is nothing to merge")
    layers = layer_counts(names)
    for recipe in recipes:
        for key, setting in _settings(recipe):
            if isinstance(setting, tuple):
                _check_rules(key, setting, [*names, HEAD] if tied else names)
                _check_depths(key, setting, layers)
                for name in names:
                    resolve(setting, name, layers.get(stack_of(name) or "", 0), key=key)
        if recipe.spec.combine in ("average", "span") and recipe.normalize:
            _check_sums(recipe, names, layers)


def layer_counts(names: Sequence[str]) -> dict[str, int]:
    """Number of layers of every stack of layers that tensors of these names belong to."""
    counts: dict[str, int] = {}
    for name in names:
        if (stack := stack_of(name)) is not None:
            counts[stack] = max(counts.get(stack, 0), (layer_of(name) or 0) + 1)
    return counts


def _settings(recipe: Recipe) -> Iterator[tuple[str, Setting]]:
    """What may differ between tensors, with its key."""
    for model in recipe.models:
        for key in recipe.spec.model_keys:
            yield f"models.{model.name}.{key}", getattr(model, key)
    for key, name in (("lambda", "lambda_"), ("t", "t")):
        if key in recipe.spec.recipe_keys:
            yield key, getattr(recipe, name)


def _check_rules(key: str, setting: Setting, names: Sequence[str]) -> None:
    for i, rule in enumerate(setting if isinstance(setting, tuple) else ()):
        if isinstance(rule, Rule) and not any(rule.matches(name) for name in names):
            layers = rule.layers and f"layers {rule.layers[0]}-{rule.layers[1]}"
            wanted = ", ".join(filter(None, [rule.kind, rule.filter and f"filter {rule.filter!r}", layers]))
            stacks = ", ".join(f"{stack}0-{count - 1}" for stack, count in sorted(layer_counts(names).items()))
            raise BadInput(f"{key}[{i}]: {wanted}: matches no tensor; the layers are {stacks or 'not known'}")


def _check_depths(key: str, setting: tuple[float, ...] | tuple[Rule, ...], layers: dict[str, int]) -> None:
    settings = [part.value if isinstance(part, Rule) else setting for part in setting]
    if not layers and any(isinstance(value, tuple) and len(set(value)) > 1 for value in settings):
        raise BadInput(f"{key}: a gradient over depth, but these tensors' names do not tell their layers; give rules")


def _check_sums(recipe: Recipe, names: Sequence[str], layers: dict[str, int]) -> None:
    for name in names:
        depth = layers.get(stack_of(name) or "", 0)
        if abs(sum(resolve(model.weight, name, depth) for model in recipe.models)) < 1e-8:
            raise BadInput(
                f"models: the weights of tensor {name} sum to 0, and an average is divided by their sum; "
                "give weights with another sum, or normalize: false"
            )
