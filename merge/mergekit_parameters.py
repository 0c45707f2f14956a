"""The parameters of a mergekit config: their scopes, and their names in our schema."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from common.errors import BadInput, suggestion
from merge.method_table import MODEL_DEFAULTS, Method

_SHARED = ("int8_mask", "t", "lambda", "normalize", "rescale", "select_topk")  # parameters of the whole merge
_ONLY = {"sce": {"int8_mask", "select_topk"}, "arcee_fusion": set[str]()}  # of which these methods have no others
_FIXED: dict[str, dict[str, Any]] = {  # by method: parameters that we have at mergekit's default only
    "model_stock": {"filter_wise": False},
    "nuslerp": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
    "multislerp": {"eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
}
_RENAMED = {("multislerp", "normalize"): "normalize_weights"}
MODEL_KEYS = ("weight", "density", "gamma", "epsilon", "scale")
_DEFAULTS = {key: MODEL_DEFAULTS[key] for key in MODEL_KEYS if key != "weight"}  # which mergekit requires


def mapping(value: Any, at: str) -> dict[str, Any]:
    """Return a mapping with text keys; null is an empty one. Raises BadInput that names its place."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"{at}: expected a mapping.")
    return {str(key): entry for key, entry in value.items()}


def scoped(name: str, scopes: list[Mapping[str, Any]]) -> Any:
    """Return a parameter's value.

    Scopes apply in order, then mergekit's default; rules that match nothing pass it on to the next scope.
    """
    rules: list[Any] = []
    for scope in scopes:
        if name not in scope:
            continue
        value = scope[name]
        listed = [value] if isinstance(value, dict) else value
        if not (isinstance(listed, list) and listed and all(isinstance(part, dict) for part in listed)):
            return [*rules, {"value": value}] if rules else value
        rules += listed
    default = _DEFAULTS.get(name)
    if rules and default is not None:
        rules.append({"value": default})
    return rules or default


def shared_settings(method: Method, shared: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return our settings of a whole recipe. Raises BadInput for parameters that the method, or we, do not have."""
    fixed, renamed = _FIXED.get(method.name, {}), {new for (name, _), new in _RENAMED.items() if name == method.name}
    for key in fixed.keys() & shared.keys():
        if shared[key] != fixed[key]:
            raise BadInput(f"{where}: parameters.{key}: must be {fixed[key]!r}, got {shared[key]!r}.")
    known = sorted(_ONLY.get(method.name, {*MODEL_KEYS, *_SHARED, *fixed, *renamed}))
    unknown = sorted(set(shared) - set(known))
    if unknown:
        raise BadInput(
            f"{where}: parameters: {method.name} has no parameter {unknown[0]}. {suggestion(unknown[0], known)}"
        )
    settings: dict[str, Any] = {}
    for key in method.recipe_keys:
        if key == "t" and "t" not in shared:
            raise BadInput(f"{where}: parameters.t: missing. Set it: {method.name} needs it.")
        if key == "normalize":
            settings[key] = _flag(shared, _RENAMED.get((method.name, key), key), method.normalize, where)
        elif key == "rescale":
            settings[key] = "l1" if _flag(shared, key, method.rescale != "none", where) else "none"
        elif key == "election":
            settings[key] = "weighted" if method.weighted else "unweighted"
        elif key in _SHARED and key in shared:
            settings[key] = shared[key]
    return settings


def _flag(shared: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = shared.get(key, default)
    if not isinstance(value, bool | int | float) or not math.isfinite(value):  # mergekit-evolve writes 1.0 and 0.0
        raise BadInput(f"{where}: parameters.{key}: must be true or false for the whole model, got {value!r}.")
    return bool(value)
