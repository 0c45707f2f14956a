"""Whether a recipe's settings fit the tensors that they are for: rules that match, depths that are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from common.errors import BadInput
from merge.per_tensor import Rule, Setting, applying, is_in_unknown_stack, layer_counts, resolve
from merge.recipe import Recipe

if TYPE_CHECKING:
    from merge.stream.output import Output, Parent


def check_settings(recipes: Sequence[Recipe], outputs: Sequence[Output], tied: str | None) -> None:
    """Resolve every setting for every tensor that is merged.

    tied: the head's name where it is the embedding; a rule for it may then match nothing. Raises BadInput for a rule
    that matches no tensor, a tensor that no rule matches, a gradient where layers are not known, and weights to be
    averaged whose sum is zero.
    """
    floating = [output for output in outputs if output.floating]
    if not floating:
        raise BadInput("the checkpoints hold no floating point tensors: there is nothing to merge")
    names = list(dict.fromkeys(name for output in floating for name in (output.name, *output.names.values())))
    layers = layer_counts(names)
    for recipe in recipes:
        for number, part in enumerate(recipe.slices) if recipe.slices else [(None, recipe)]:
            mine = [output for output in floating if output.slice == number]
            for key, parent, setting in _settings(part):
                if isinstance(setting, tuple):
                    _check_rules(key, setting, [*names, tied] if tied else names)
                    for output in mine:
                        name = output.name if parent is None else output.name_in(parent)
                        _check_depth(key, applying(setting, name, key), name, bool(layers))
            if part.spec.combine in ("average", "span") and part.normalize:
                _check_sums(part, mine)


def _settings(recipe: Recipe) -> Iterator[tuple[str, Parent | None, Setting]]:
    """What may differ between tensors, with its key and whose names its rules go by (None: the result's)."""
    for model in recipe.models:
        for key in recipe.spec.model_keys:
            yield f"models.{model.name}.{key}", (model.path, model.adapter), getattr(model, key)
    for key, name in (("lambda", "lambda_"), ("t", "t"), ("select_topk", "select_topk")):
        if key in recipe.spec.recipe_keys:
            yield key, None, getattr(recipe, name)


def _check_rules(key: str, setting: Setting, names: Sequence[str]) -> None:
    for i, rule in enumerate(setting if isinstance(setting, tuple) else ()):
        if isinstance(rule, Rule) and not any(rule.matches(name) for name in names):
            layers = rule.layers and f"layers {rule.layers[0]}-{rule.layers[1]}"
            wanted = ", ".join(filter(None, [rule.kind, rule.filter and f"filter {rule.filter!r}", layers]))
            stacks = ", ".join(f"{stack}0-{count - 1}" for stack, count in sorted(layer_counts(names).items()))
            raise BadInput(f"{key}[{i}]: {wanted}: matches no tensor; the layers are {stacks or 'not known'}")


def _check_depth(key: str, value: float | tuple[float, ...], name: str, layers: bool) -> None:
    """A gradient asks for depths. layers: whether any tensor's name tells its layer."""
    if isinstance(value, tuple) and len(set(value)) > 1 and (not layers or is_in_unknown_stack(name)):
        raise BadInput(
            f"{key}: a gradient over depth, but the name of tensor {name} does not tell its layer; give rules"
        )


def _check_sums(recipe: Recipe, outputs: Sequence[Output]) -> None:
    for output in outputs:
        weights = (
            resolve(model.weight, output.name_in((model.path, model.adapter)), output.depth) for model in recipe.models
        )
        if abs(sum(weights)) < 1e-8:
            raise BadInput(
                f"models: the weights of tensor {output.name} sum to 0, and an average is divided by their sum; "
                "give weights with another sum, or normalize: false"
            )
