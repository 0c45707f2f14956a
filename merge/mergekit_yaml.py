"""A mergekit config as a recipe that means the same, number for number.

Where mergekit's meaning is not our default, the recipe says so: election on weighted task vectors, arithmetic in the
dtype that the inputs promote to, l1 rescaling, no question about tokenizers. What we do not do is refused by name,
never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.hub import NAME, PREFIX
from common.parsing import read_json
from merge.method_table import METHODS, MODEL_DEFAULTS, Method

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_KEYS = {"models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source"}
_SHARED = ("int8_mask", "t", "lambda", "normalize", "rescale")  # parameters of the whole merge
_FIXED: dict[str, dict[str, Any]] = {  # by method: parameters that we have at mergekit's default only
    "model_stock": {"filter_wise": False},
    "nuslerp": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
    "multislerp": {"eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
}
_RENAMED = {("multislerp", "normalize"): "normalize_weights"}
_MODEL_KEYS = ("weight", "density", "gamma", "epsilon")
_DEFAULTS = {key: MODEL_DEFAULTS[key] for key in _MODEL_KEYS if key != "weight"}  # which mergekit asks for


def to_recipe_dict(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our schema's words for a mergekit config. Raises BadInput naming the key that we do not support."""
    supported = {name: method for name, method in METHODS.items() if method.mergekit}
    method = supported.get(str(data.get("merge_method")))
    if method is None:
        raise BadInput(f"{where}: merge_method: supported are {', '.join(supported)}; got {data.get('merge_method')!r}")
    unknown = sorted(set(map(str, data)) - _KEYS)
    if unknown:
        raise BadInput(
            f"{where}: mergekit key {', '.join(unknown)} is not supported; supported are {', '.join(sorted(_KEYS))}"
        )
    shared = _mapping(data.get("parameters"), f"{where}: parameters")
    base = None if data.get("base_model") is None else str(data["base_model"])
    if base is None and method.base:
        raise BadInput(f"{where}: base_model: {method.name} needs one")
    entries = _entries(data, where)
    recipe: dict[str, Any] = {"method": method.name, "models": _models(entries, base, method, shared, where)}
    if method.base or (method.base_use == "optional" and base is not None):
        recipe["base"] = _local_or_hub(str(base))
    elif base is not None and base not in [path for path, _ in entries]:
        raise BadInput(
            f"{where}: base_model: {method.name} has no base; list the model under models, or leave base_model out"
        )
    recipe |= _shared_settings(method, shared, where)
    return recipe | _dtypes(data, where) | _tokenizer(data) | {"exact": False}


def _entries(data: Mapping[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    """(path, parameters) of every model listed."""
    models, slices = data.get("models"), data.get("slices")
    if (models is None) == (slices is None):
        raise BadInput(f"{where}: exactly one of models and slices is needed")
    key = "models"
    if models is None:
        only = slices[0] if isinstance(slices, list) and len(slices) == 1 else None
        if not isinstance(only, Mapping) or set(only) != {"sources"}:
            raise BadInput(
                f"{where}: slices: only one slice of whole models (sources alone) is supported; "
                "layers cannot be restacked"
            )
        key, models = "slices[0].sources", only["sources"]
    if not isinstance(models, list) or not models:
        raise BadInput(f"{where}: {key}: expected a list of models")
    listed = []
    for i, entry in enumerate(models):
        at = f"{where}: {key}[{i}]"
        allowed = {"model", "parameters"} | ({"layer_range"} if slices is not None else set())
        if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str) or set(entry) - allowed:
            raise BadInput(f"{at}: expected {', '.join(sorted(allowed))}, with model a local folder")
        if slices is not None:
            _check_whole(entry, at)
        listed.append((entry["model"], _mapping(entry.get("parameters"), f"{at}.parameters")))
    return listed


def _check_whole(entry: Mapping[str, Any], at: str) -> None:
    config = Path(entry["model"].split("+")[0]) / "config.json"
    layers = read_json(config, expected="the config of a Hugging Face checkpoint").get("num_hidden_layers")
    if entry.get("layer_range") != [0, layers]:
        raise BadInput(
            f"{at}.layer_range: only the whole model, [0, {layers}], is supported; got {entry.get('layer_range')}"
        )


def _models(
    entries: list[tuple[str, dict[str, Any]]], base: str | None, method: Method, shared: Mapping[str, Any], where: str
) -> dict[str, Any]:
    models: dict[str, Any] = {}
    paths = [path for path, _ in entries]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise BadInput(f"{where}: models: {twice} is listed twice; give it once, with the sum of its weights")
    for path, parameters in entries:
        if method.base_use != "unused" and path == base:
            continue
        folder, _, adapter = path.partition("+")
        label = Path(adapter or folder).name.partition("@")[0]
        label = label if label not in models else f"{label}-{len(models)}"
        at = f"{where}: models: {path}"
        unknown = sorted(set(parameters) - set(_MODEL_KEYS))
        if unknown:
            raise BadInput(f"{at}: parameter {', '.join(unknown)} is not one of {method.name}'s")
        models[label] = {"path": _local_or_hub(folder)} | ({"adapter": adapter} if adapter else {})
        for name in filter(_MODEL_KEYS.__contains__, method.model_keys):
            value = _scoped(name, [parameters, shared])
            if value is None:
                raise BadInput(f"{at}: parameter weight is missing; mergekit asks for it")
            models[label][name] = value
    return models


def _local_or_hub(model: str) -> str:
    """A local folder where there is one of that name, else, as mergekit has it, a model of the hub.

    Owner/name@revision.
    """
    return f"{PREFIX}{model}" if not Path(model).exists() and NAME.fullmatch(model) else model


def _scoped(name: str, scopes: list[Mapping[str, Any]]) -> Any:
    """A parameter's value.

    The scopes in order, then mergekit's default; rules that match nothing leave it to the next scope.
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


def _shared_settings(method: Method, shared: Mapping[str, Any], where: str) -> dict[str, Any]:
    fixed, renamed = _FIXED.get(method.name, {}), {new for (name, _), new in _RENAMED.items() if name == method.name}
    for key in fixed.keys() & shared.keys():
        if shared[key] != fixed[key]:
            raise BadInput(f"{where}: parameters.{key}: only {fixed[key]!r} is supported; got {shared[key]!r}")
    unknown = sorted(set(shared) - {*_MODEL_KEYS, *_SHARED, *fixed, *renamed})
    if unknown:
        raise BadInput(f"{where}: parameters: {', '.join(unknown)} is not one of {method.name}'s")
    settings: dict[str, Any] = {}
    for key in method.recipe_keys:
        if key == "t" and "t" not in shared:
            raise BadInput(f"{where}: parameters.t: missing; {method.name} needs it")
        if key == "normalize":
            settings[key] = _flag(shared, _RENAMED.get((method.name, key), key), method.normalize, where)
        elif key == "rescale":
            settings[key] = "l1" if _flag(shared, key, method.rescale != "none", where) else "none"
        elif key == "election":
            settings[key] = "weighted"
        elif key in _SHARED and key in shared:
            settings[key] = shared[key]
    return settings


def _dtypes(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    named = {}
    for key in ("dtype", "out_dtype"):
        name = None if data.get(key) is None else str(data[key]).removeprefix("torch.")
        if name is not None and name not in _DTYPES:
            raise BadInput(f"{where}: {key}: one of {', '.join(_DTYPES)}; got {data[key]!r}")
        named[key] = name
    return {"compute_dtype": named["dtype"] or "inputs", "out_dtype": named["out_dtype"] or "compute"}


def _tokenizer(data: Mapping[str, Any]) -> dict[str, Any]:
    """Any tokenizer_source comes to the same where all tokenizers are one, which `required` checks."""
    return {"tokenizer": "optional" if data.get("tokenizer_source") is None else "required"}


def _flag(shared: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = shared.get(key, default)
    if not isinstance(value, bool | int):
        raise BadInput(f"{where}: parameters.{key}: only true or false for the whole model is supported; got {value!r}")
    return bool(value)


def _mapping(value: Any, at: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"{at}: expected a mapping")
    return {str(key): entry for key, entry in value.items()}
