"""A merge as a value: which checkpoints, which method, which settings.

Our schema, as YAML:

    method: ties_sv
    base: path/to/base
    models:
      ct:  {path: path/to/ct,  weight: 1.0, density: 0.5}
      sft: {path: path/to/sft, weight: 1.0, density: 0.5}
    lambda: 1.0            # scale of the merged task vector
    normalize: true        # disjoint mean (true) or disjoint sum (false)
    slack: 0.5             # methods with a sign election only
    protect: [sft]
    election: unweighted   # or weighted: mergekit's order
    rescale: none          # none | expectation | l1: what trimming or dropping took away
    seed: 0
    compute_dtype: float32
    out_dtype: base        # the base's own dtype, `compute`, or a name
    tokenizer: required    # or optional: neither asked for nor compared
    exact: true            # a single whole model is copied, not recomputed as θ0 + (θ − θ0), which rounds

Relative paths are relative to the YAML file. A file with the key `merge_method` is read as a mergekit config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from common.errors import BadInput
from common.hub import PREFIX as HUB
from merge import settings
from merge.settings import Setting


@dataclass(frozen=True)
class Method:
    """What a method's name stands for.

    sparsify: how a task vector is thinned (None, largest, random, band, ranked); elect: whether signs are elected;
    normalize, rescale: defaults.
    """

    sparsify: str | None = None
    elect: bool = False
    normalize: bool = False
    rescale: str = "none"
    base: bool = True


METHODS: dict[str, Method] = {
    "linear": Method(normalize=True, base=False),
    "slerp": Method(),
    "task_arithmetic": Method(),
    "ties": Method("largest", elect=True, normalize=True),
    "ties_sv": Method("largest", elect=True, normalize=True),
    "dare_linear": Method("random", rescale="expectation"),
    "dare_ties": Method("random", elect=True, rescale="expectation"),
    "breadcrumbs": Method("band"),
    "breadcrumbs_ties": Method("band", elect=True),
    "della": Method("ranked", elect=True, normalize=True, rescale="expectation"),
    "della_linear": Method("ranked", rescale="expectation"),
}
ELECTIONS = ("unweighted", "weighted")
RESCALES = ("none", "expectation", "l1")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class ModelRef:
    """One model that is merged, by the name under which audit and `protect` speak of it.

    density: share of the task vector kept, in (0, 1]. gamma: share of the largest values dropped (breadcrumbs).
    epsilon: half the spread of keep probabilities (della). adapter: a LoRA folder whose base is `path`.
    """

    name: str
    path: Path
    weight: Setting = 1.0
    density: Setting = 1.0
    gamma: Setting = 0.01
    epsilon: Setting = 0.15
    adapter: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """A merge, fully stated. Build one with `Recipe.from_dict` or `from_yaml`: they fill in the method's defaults and check."""

    method: str
    base: Path | None
    models: tuple[ModelRef, ...]
    lambda_: Setting = 1.0
    normalize: bool = True
    slack: float = 0.0
    protect: tuple[str, ...] = ()
    election: str = "unweighted"
    rescale: str = "none"
    t: Setting = 0.5
    seed: int = 0
    compute_dtype: str = "float32"
    out_dtype: str = "base"
    tokenizer: str = "required"
    exact: bool = True

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe file, ours or mergekit's. Raises BadInput naming the file and the key."""
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"{path}: no such file; expected a merge recipe (YAML)")
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: not YAML: {' '.join(str(error).split())}") from None
        if isinstance(data, dict) and "merge_method" in data:
            from merge.mergekit_yaml import to_recipe_dict

            return cls.from_dict(to_recipe_dict(data, str(path)), where=str(path))
        return cls.from_dict(data, where=str(path), root=path.parent)

    @classmethod
    def from_dict(cls, data: Any, where: str = "recipe", root: Path | None = None) -> Recipe:
        """Recipe of plain data as YAML gives it; see the module's text for the keys. Relative paths start at `root`."""
        return _parse(data, where, root)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns into an equal recipe."""
        spec = self.spec
        out: dict[str, Any] = {"method": self.method}
        if self.base is not None:
            out["base"] = str(self.base)
        out["models"] = {model.name: _model_dict(model, spec) for model in self.models}
        if self.method == "slerp":
            out["t"] = settings.to_plain(self.t)
        elif self.method == "linear":
            out["normalize"] = self.normalize
        else:
            out |= {"lambda": settings.to_plain(self.lambda_), "normalize": self.normalize}
        if spec.elect:
            out |= {"slack": self.slack, "protect": list(self.protect), "election": self.election}
        if spec.sparsify:
            out["rescale"] = self.rescale
        if spec.sparsify in ("random", "ranked"):
            out["seed"] = self.seed
        common = ("compute_dtype", "out_dtype", "tokenizer", "exact")
        return out | {key: getattr(self, key) for key in common}

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML with absolute paths, so that it means the same wherever it is read from."""
        path = Path(path)
        models = tuple(
            replace(m, path=_absolute(m.path), adapter=m.adapter and _absolute(m.adapter)) for m in self.models
        )
        absolute = replace(self, base=self.base and _absolute(self.base), models=models)
        aside = path.with_name(f".{path.name}.part")
        aside.write_text(yaml.safe_dump(absolute.to_dict(), sort_keys=False), encoding="utf-8")
        aside.replace(path)


def _model_dict(model: ModelRef, spec: Method) -> dict[str, Any]:
    out: dict[str, Any] = {"path": str(model.path)}
    if model.adapter is not None:
        out["adapter"] = str(model.adapter)
    for key in _model_keys(spec):
        out[key] = settings.to_plain(getattr(model, key))
    return out


def _model_keys(spec: Method) -> tuple[str, ...]:
    """Per-model settings that a method reads."""
    if spec is METHODS["slerp"]:
        return ()
    extra = {"band": ("density", "gamma"), "ranked": ("density", "epsilon"), None: ()}.get(spec.sparsify, ("density",))
    return ("weight", *extra)


def _allowed_keys(name: str, spec: Method) -> set[str]:
    keys = {"method", "base", "models", "compute_dtype", "out_dtype", "tokenizer", "exact"}
    keys |= {"t"} if name == "slerp" else {"normalize"} if name == "linear" else {"lambda", "normalize"}
    if spec.elect:
        keys |= {"slack", "protect", "election"}
    if spec.sparsify:
        keys |= {"rescale"}
    if spec.sparsify in ("random", "ranked"):
        keys |= {"seed"}
    return keys


def _parse(data: Any, where: str, root: Path | None) -> Recipe:
    if not isinstance(data, Mapping):
        raise BadInput(f"{where}: expected a mapping with the keys method, base, models; got {type(data).__name__}")
    name = data.get("method")
    if name not in METHODS:
        raise BadInput(f"{where}: method: one of {', '.join(METHODS)}; got {name!r}")
    spec = METHODS[name]
    unknown = set(map(str, data)) - _allowed_keys(name, spec)
    if unknown:
        known = ", ".join(sorted(_allowed_keys(name, spec)))
        raise BadInput(f"{where}: method {name} has no key {', '.join(sorted(unknown))}; its keys are {known}")
    base = data.get("base")
    if spec.base and base is None:
        raise BadInput(f"{where}: base: method {name} needs the model that the others start from")
    models = _models(data.get("models"), name, spec, where, root)
    protect = _names(data.get("protect") or [], f"{where}: protect", models)
    slack = settings.number(data.get("slack", 0.0), f"{where}: slack")
    if math.isnan(slack) or slack < 0:
        raise BadInput(f"{where}: slack: 0 (TIES) or more, .inf allowed; got {slack:g}")
    if slack > 0 and not protect:
        raise BadInput(
            f"{where}: protect: name the model that slack {slack:g} protects, one of {', '.join(m.name for m in models)}"
        )
    lambda_ = settings.parse(data.get("lambda", 1.0), f"{where}: lambda")
    t = settings.parse(data.get("t", 0.5), f"{where}: t")
    _finite(lambda_, f"{where}: lambda")
    _finite(t, f"{where}: t")
    return Recipe(
        method=name,
        base=None if base is None else _path(base, f"{where}: base", root),
        models=models,
        lambda_=lambda_,
        normalize=_boolean(data.get("normalize", spec.normalize), f"{where}: normalize"),
        slack=slack,
        protect=protect,
        election=_choice(data.get("election", "unweighted"), ELECTIONS, f"{where}: election"),
        rescale=_choice(data.get("rescale", spec.rescale), RESCALES, f"{where}: rescale"),
        t=t,
        seed=_integer(data.get("seed", 0), f"{where}: seed"),
        compute_dtype=_choice(data.get("compute_dtype", "float32"), (*DTYPES, "inputs"), f"{where}: compute_dtype"),
        out_dtype=_choice(data.get("out_dtype", "base"), (*DTYPES, "base", "compute"), f"{where}: out_dtype"),
        tokenizer=_choice(data.get("tokenizer", "required"), ("required", "optional"), f"{where}: tokenizer"),
        exact=_boolean(data.get("exact", True), f"{where}: exact"),
    )


def _models(data: Any, name: str, spec: Method, where: str, root: Path | None) -> tuple[ModelRef, ...]:
    if not isinstance(data, Mapping) or not data:
        raise BadInput(f"{where}: models: expected a mapping from a model's name to {{path: ...}}")
    keys = _model_keys(spec)
    models = []
    for label, entry in data.items():
        at = f"{where}: models.{label}"
        if not isinstance(entry, Mapping) or "path" not in entry:
            raise BadInput(
                f"{at}.path: missing; expected {{path: folder{''.join(f', {key}: number' for key in keys)}}}"
            )
        unknown = set(map(str, entry)) - {"path", "adapter", *keys}
        if unknown:
            known = ", ".join(("path", "adapter", *keys))
            raise BadInput(f"{at}: method {name} has no key {', '.join(sorted(unknown))}; its keys are {known}")
        adapter = entry.get("adapter")
        model = ModelRef(
            name=str(label),
            path=_path(entry["path"], f"{at}.path", root),
            adapter=None if adapter is None else _path(adapter, f"{at}.adapter", root),
            **{key: settings.parse(entry[key], f"{at}.{key}") for key in keys if key in entry},
        )
        _check_ranges(model, spec, at)
        models.append(model)
    if name == "slerp" and len(models) != 1:
        raise BadInput(f"{where}: models: slerp goes from the base to one model; got {len(models)}")
    return tuple(models)


def _check_ranges(model: ModelRef, spec: Method, at: str) -> None:
    _finite(model.weight, f"{at}.weight")
    for value in settings.values(model.density):
        if not 0 < value <= 1:
            raise BadInput(f"{at}.density: the share kept, above 0 and at most 1; got {value:g}")
    for value in settings.values(model.gamma):
        if not 0 <= value < 1:
            raise BadInput(f"{at}.gamma: the share of largest values dropped, from 0 to below 1; got {value:g}")
    if spec.sparsify == "ranked":
        for density in settings.values(model.density):
            for epsilon in settings.values(model.epsilon):
                if density < 1 and not (epsilon >= 0 and density - epsilon > 0 and density + epsilon < 1):
                    raise BadInput(
                        f"{at}.epsilon: density ± epsilon must lie inside (0, 1); got {density:g} ± {epsilon:g}"
                    )


def _finite(setting: Setting, at: str) -> None:
    for value in settings.values(setting):
        if not math.isfinite(value):
            raise BadInput(f"{at}: expected a finite number; got {value}")


def _path(value: Any, at: str, root: Path | None) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise BadInput(f"{at}: expected a folder; got {value!r}")
    return Path(value) if root is None or str(value).startswith(HUB) else root / value


def _absolute(path: Path) -> Path:
    return path if str(path).startswith(HUB) else path.absolute()


def _names(value: Any, at: str, models: tuple[ModelRef, ...]) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    known = [model.name for model in models]
    if not isinstance(names, list | tuple):
        raise BadInput(f"{at}: expected a list of model names; got {value!r}")
    for name in names:
        if name not in known:
            raise BadInput(f"{at}: no model is called {name!r}; the models are {', '.join(known)}")
    return tuple(names)


def _choice(value: Any, choices: tuple[str, ...], at: str) -> str:
    if value not in choices:
        raise BadInput(f"{at}: one of {', '.join(choices)}; got {value!r}")
    return str(value)


def _boolean(value: Any, at: str) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"{at}: true or false; got {value!r}")
    return value


def _integer(value: Any, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"{at}: expected a whole number; got {value!r}")
    return value
