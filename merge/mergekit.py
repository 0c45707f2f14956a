"""Translate a mergekit config into a recipe with the same result, number for number.

Where mergekit differs from our defaults, the recipe states it: election on weighted task vectors, arithmetic in the
dtype that the inputs promote to, l1 rescaling, no check of tokenizers. Unsupported keys are rejected by name, never
ignored. Models are named `path`, `path@revision`, `path+lora`, or the same as mappings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import BadInput, suggestion
from common.hub import NAME, PREFIX
from merge.methods import METHODS, MODEL_DEFAULTS, Method

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_KEYS = {"models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype"} | {
    "tokenizer_source", "tokenizer", "chat_template"
}  # fmt: skip
_MODEL, _PATH = {"model", "lora", "override_architecture"}, {"path", "revision"}
_SHARED = ("int8_mask", "t", "lambda", "normalize", "rescale", "select_topk")  # parameters of the whole merge
MODEL_KEYS = ("weight", "density", "gamma", "epsilon", "scale")
_DEFAULTS = {key: MODEL_DEFAULTS[key] for key in MODEL_KEYS if key != "weight"}  # which mergekit requires


def to_recipe_dict(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Translate a mergekit config into our schema. Raises BadInput that names an unsupported key."""
    supported = {name: method for name, method in METHODS.items() if method.mergekit}
    method = supported.get(str(data.get("merge_method")))
    if method is None:
        raise BadInput(
            f"{where}: merge_method: not supported, got {data.get('merge_method')!r}. "
            f"{suggestion(data.get('merge_method'), supported)}"
        )
    unknown = sorted(set(map(str, data)) - _KEYS)
    if unknown:
        raise BadInput(f"{where}: mergekit key {unknown[0]} is not supported. {suggestion(unknown[0], sorted(_KEYS))}")
    shared = mapping(data.get("parameters"), f"{where}: parameters")
    base = reference_or_none(data.get("base_model"), f"{where}: base_model")
    if base is None and method.base and data.get("slices") is None:
        raise BadInput(f"{where}: base_model: missing. Set it: {method.name} needs a base.")
    models, slices = data.get("models"), data.get("slices")
    if (models is None) == (slices is None):
        raise BadInput(f"{where}: expected exactly one of models and slices. Give one of them.")
    rest = _dtypes(data, where) | {"exact": False}
    if slices is not None:
        stacked = {"method": method.name, **_sliced(slices, base, method, shared, where), **rest}
        return stacked | _tokenizer(data, base, stacked, where)
    entries = _entries(models, f"{where}: models", ("model", "parameters"))
    merged = {model: own for model, own in entries if not (method.base_use != "unused" and model == base)}
    recipe: dict[str, Any] = {
        "method": method.name,
        "models": _models(merged, {}, method, shared, f"{where}: models"),
    }
    if base is not None and method.base_use == "unused" and base not in dict(entries):
        raise BadInput(
            f"{where}: base_model: {method.name} merges without a base. "
            "List the model under models, or leave base_model out."
        )
    if base is not None and base.adapter:
        raise BadInput(
            f"{where}: base_model: must be without an adapter, got {base}. Merge the adapter into its base first."
        )
    if base is not None:  # of methods without one too: it gives the config, and rows of tokens that others lack
        recipe["base"] = _local_or_hub(base.folder)
    return recipe | shared_settings(method, shared, where) | rest | _tokenizer(data, base, recipe, where)


def _entries(listed: Any, at: str, keys: tuple[str, ...]) -> list[tuple[Reference, dict[str, Any]]]:
    """Return (model, parameters) of every listed model; a layer range is among the parameters."""
    if not isinstance(listed, list) or not listed:
        raise BadInput(f"{at}: expected a list of models.")
    entries: list[tuple[Reference, dict[str, Any]]] = []
    for i, entry in enumerate(listed):
        where = f"{at}[{i}]"
        if not isinstance(entry, Mapping) or entry.get("model") is None or set(entry) - set(keys):
            raise BadInput(f"{where}: expected a mapping with the keys {', '.join(keys)}.")
        model = reference(entry["model"], f"{where}.model")
        if model in dict(entries):
            raise BadInput(f"{at}: {model} is listed twice. Give it once, with the sum of its weights.")
        own = mapping(entry.get("parameters"), f"{where}.parameters")
        if "layer_range" in keys:
            own["layer_range"] = _layers(entry.get("layer_range"), f"{where}.layer_range")
        entries.append((model, own))
    return entries


def _layers(value: Any, at: str) -> str:
    """Translate a layer range, whose end is exclusive in mergekit."""
    whole = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    if not whole or not 0 <= value[0] < value[1] <= 10**9:
        raise BadInput(f"{at}: expected [first, end], the layers from first to before end, got {value!r}."[:500])
    return f"{value[0]}-{value[1] - 1}"


def _models(
    merged: Mapping[Reference, dict[str, Any]],
    labels: dict[Reference, str],
    method: Method,
    shared: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """Return our entries for models, named after their paths. labels: names by model, extended here."""
    models: dict[str, Any] = {}
    for model, parameters in merged.items():
        folder, adapter = model
        at = f"{where}: {model}"
        known = sorted({*MODEL_KEYS, "layer_range"})
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            raise BadInput(f"{at}: {method.name} has no parameter {unknown[0]}. {suggestion(unknown[0], known)}")
        if model not in labels:
            label = Path(adapter or folder).name.partition("@")[0]
            numbered = (f"{label}-{number}" for number in itertools.count(1))
            labels[model] = next(name for name in itertools.chain([label], numbered) if name not in labels.values())
        entry: dict[str, Any] = {"path": _local_or_hub(folder)} | (
            {"adapter": _local_or_hub(adapter)} if adapter else {}
        )
        if "layer_range" in parameters:
            entry["layers"] = parameters["layer_range"]
        for name in filter(MODEL_KEYS.__contains__, method.model_keys):
            value = scoped(name, [parameters, shared])
            if value is None:
                raise BadInput(f"{at}: parameter weight is missing. Set it, as for mergekit.")
            entry[name] = value
        models[labels[model]] = entry
    return models


def _sliced(
    slices: Any, base: Reference | None, method: Method, shared: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return models, slices, base and the settings of the first slice, in our schema."""
    if not isinstance(slices, list) or not slices:
        raise BadInput(
            f"{where}: slices: expected a list of slices, each with its sources, got {type(slices).__name__}."
        )
    labels: dict[Reference, str] = {}
    models: dict[str, dict[str, Any]] = {}
    parts: list[dict[str, Any]] = []
    for i, entry in enumerate(slices):
        at = f"{where}: slices[{i}]"
        if not isinstance(entry, Mapping) or set(entry) - {"sources", "base_model", "parameters"}:
            raise BadInput(f"{at}: expected sources, and any of base_model and parameters.")
        own_base = reference_or_none(entry.get("base_model"), f"{at}.base_model") or base
        sources = dict(_entries(entry.get("sources"), f"{at}.sources", ("model", "layer_range", "parameters")))
        scope = mapping(entry.get("parameters"), f"{at}.parameters")
        settings = {name: scoped(name, [scope, shared]) for name in (*scope, *shared)}
        part = shared_settings(method, settings, at)
        if method.base_use != "unused" and own_base is not None:
            if own_base not in sources:
                raise BadInput(
                    f"{at}: its base_model {own_base} is not one of its sources. Add it there, as for mergekit."
                )
            part |= {"base": _local_or_hub(own_base.folder), "layers": sources.pop(own_base)["layer_range"]}
        elif method.base:
            raise BadInput(f"{at}: base_model: missing. Set it: {method.name} needs a base.")
        own = _models(sources, labels, method, settings, f"{at}.sources")
        for name, model in own.items():
            models[name] = {key: model.pop(key) for key in ("path", "adapter") if key in model}
        parts.append({**part, "models": own})
    first = {key: value for key, value in parts[0].items() if key not in ("layers", "models")}
    return {**first, "models": models, "slices": parts}


def _local_or_hub(model: str) -> str:
    """Return a local folder if there is one, else, as in mergekit, a model of the Hub.

    Owner/name@revision.
    """
    return f"{PREFIX}{model}" if not Path(model).exists() and NAME.fullmatch(model) else model


def _dtypes(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    named = {}
    for key in ("dtype", "out_dtype"):
        name = None if data.get(key) is None else str(data[key]).removeprefix("torch.")
        if name is not None and name not in _DTYPES:
            raise BadInput(f"{where}: {key}: must be one of {', '.join(_DTYPES)}, got {data[key]!r}.")
        named[key] = name
    return {"compute_dtype": named["dtype"] or "inputs", "out_dtype": named["out_dtype"] or "compute"}


def _tokenizer(
    data: Mapping[str, Any], base: Reference | None, recipe: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Translate tokenizer_source, or a tokenizer with a source alone, and the chat template."""
    source, key = data.get("tokenizer_source"), "tokenizer_source"
    if (nested := data.get("tokenizer")) is not None:
        key = "tokenizer.source"
        if source is not None or not isinstance(nested, Mapping) or set(nested) - {"source"}:
            raise BadInput(
                f"{where}: tokenizer: may have the key source alone. Leave out the others, and tokenizer_source."
            )
        source = nested.get("source", "union")
    chat = {"chat_template": data["chat_template"]} if data.get("chat_template") else {}
    if source is None:
        return {"tokenizer": "optional"} | chat
    # slices of a method without a base have none: there its base_model is one of the models
    wanted = None if source in ("union", "base") else reference(source, f"{where}: {key}")
    if source == "base" and base is not None and "base" not in recipe:
        wanted = base
    if wanted is None:
        return {"tokenizer": source} | chat
    if wanted == base and "base" in recipe:
        return {"tokenizer": "base"} | chat
    labels = [label for label, model in recipe["models"].items() if model["path"] == _local_or_hub(wanted.folder)]
    if not labels:
        raise BadInput(f"{where}: {key}: must be union, base, or one of the models, got {source!r}.")
    return {"tokenizer": labels[0]} | chat


class Reference(NamedTuple):
    """A folder or a model of the Hub, with or without an adapter."""

    folder: str
    adapter: str = ""

    def __str__(self) -> str:
        return f"{self.folder}+{self.adapter}" if self.adapter else self.folder


def reference_or_none(value: Any, at: str) -> Reference | None:
    """Parse as `reference`; return None for null."""
    return None if value is None else reference(value, at)


def reference(value: Any, at: str) -> Reference:
    """Parse the name of a model. Raises BadInput that begins with `at`."""
    if isinstance(value, str) and value:
        folder, _, adapter = value.partition("+")
        return Reference(folder, adapter)
    if isinstance(value, Mapping) and set(value) <= _PATH:
        return Reference(_path(value, at))
    if isinstance(value, Mapping) and set(value) <= _MODEL:
        if value.get("override_architecture") is not None:
            raise BadInput(f"{at}.override_architecture: not supported. Merge models of one architecture.")
        adapter = "" if value.get("lora") is None else _path(value["lora"], f"{at}.lora")
        model = value.get("model")
        if isinstance(model, str) and "lora" not in value:
            return reference(model, f"{at}.model")
        return Reference(_path(model, f"{at}.model"), adapter)
    raise BadInput(
        f"{at}: expected a folder, or {{model: {{path: folder, revision: name}}, lora: ...}}, got {value!r}."[:500]
    )


def _path(value: Any, at: str) -> str:
    """Parse a path, with its revision for models of the Hub."""
    if isinstance(value, str) and value:
        return value
    if (
        not isinstance(value, Mapping)
        or set(value) - _PATH
        or not isinstance(path := value.get("path"), str)
        or not path
    ):
        raise BadInput(f"{at}: expected {{path: folder}}, and a revision for a model of the hub, got {value!r}."[:500])
    revision = value.get("revision")
    if revision is not None and not isinstance(revision, str):
        raise BadInput(f"{at}.revision: expected a branch, a tag or a commit, got {revision!r}."[:500])
    return f"{path}@{revision}" if revision and not Path(path).exists() else path


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
    form = method.mergekit
    assert form is not None, f"{method.name} is not a method of mergekit"
    for key, value in form.fixed:
        if key in shared and shared[key] != value:
            raise BadInput(f"{where}: parameters.{key}: must be {value!r}, got {shared[key]!r}.")
    usual = (*MODEL_KEYS, *_SHARED, *dict(form.fixed), form.normalize)
    known = sorted(set(usual if form.parameters is None else form.parameters))
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
            settings[key] = _flag(shared, form.normalize, method.normalize, where)
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
