"""A merge recipe: checkpoints, method and settings.

Our schema, as YAML:

    method: ties_sv
    base: path/to/base
    models:
      ct:  {path: path/to/ct,  weight: 1.0}
      sft: {path: path/to/sft, weight: 1.0, density: 0.7}
    density: 0.5           # a setting of models at the top is the default of all of them
    lambda: 1.0            # scale of the merged task vector
    normalize: true        # disjoint mean (true) or disjoint sum (false)
    slack: 0.5             # methods with a sign election only; its switches are in docs/reference/merging.md
    protect: [sft]
    election: unweighted   # or weighted: mergekit's order
    rescale: none          # none | expectation | l1: what trimming or dropping took away
    seed: 0
    compute_dtype: float32
    out_dtype: base        # the base's dtype, `compute`, or a name
    tokenizer: required    # or optional: neither needed nor compared; union, base, or a model: rows by token;
                           # union:sft: the union that has the numbers, the template and the settings of sft
    chat_template: auto    # or chatml, or a template; without this key the base's
    special_rows: sft      # rows of tokens that this model's chat template writes are its own; all merged without it
    exact: true            # a single complete model is copied, not recomputed as θ0 + (θ − θ0), which rounds
    slices:                # layers restacked: each slice is a merge; settings that it does not give are those above
      - {layers: 0-1, models: {ct: {weight: 0.7}, sft: {}}}
      - {layers: 2-3, models: {ct: {layers: 1-2}, sft: {}}}

Relative paths are relative to the YAML file. A file with the key `merge_method` is read as a mergekit config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from common.errors import BadInput, listed, suggestion
from common.files import write_atomic
from common.hub import PREFIX
from common.validation import read_yaml, sentence
from merge import mergekit, per_tensor
from merge.methods import COMMON_KEYS, METHODS, MODEL_DEFAULTS, Method
from merge.per_tensor import Setting

LARGEST, SMALLEST = 3.4e38, 1.2e-38  # of float32, about
TOKENIZERS = ("required", "optional", "union", "base")  # or a model's name
UNION_OF = "union:"  # before the name of a model: the union that begins with its tokens
TEMPLATES = ("auto", "chatml")  # or a text


def _folder(value: Any, info: ValidationInfo) -> Path:
    """Parse a path; relative ones start at the context's `root`, models of the Hub stay unchanged."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise BadInput(f"expected a folder, got {value!r}.")
    root = (info.context or {}).get("root")
    return Path(value) if root is None or str(value).startswith(PREFIX) else root / value


def _each(wanted: str, is_right: Callable[[float], bool]) -> AfterValidator:
    """Return a validator of every number of a setting. wanted: how its error begins."""

    def check(setting: Setting) -> Setting:
        for number in per_tensor.values(setting):
            if not is_right(number):
                raise BadInput(f"{wanted}, got {number:g}.")
        return setting

    return AfterValidator(check)


def _template(value: str) -> str:
    if "{" not in value and value not in TEMPLATES:
        raise BadInput(f"must be one of {', '.join(TEMPLATES)}, or the text of a template (Jinja), got {value!r}.")
    return value


def _names(value: Any) -> Any:
    """Read one name as a list of it, and null as an empty list."""
    return [value] if isinstance(value, str) else [] if value is None else value


Folder = Annotated[Path, PlainValidator(_folder)]
Number = Annotated[float, PlainValidator(per_tensor.number)]
Fraction = Annotated[
    Number, _each("must be above 0 and at most 1 (a fraction of the parameters)", lambda x: 0 < x <= 1)
]
Layers = Annotated[tuple[int, int] | None, PlainValidator(per_tensor.layer_range)]
Name = Annotated[str, Field(min_length=1)]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
AnySetting = Annotated[Setting, PlainValidator(per_tensor.parse)]
Finite = Annotated[
    AnySetting,
    _each("expected a finite number", math.isfinite),
    _each(f"expected a number of at most {LARGEST:g}, the largest number of float32", lambda x: abs(x) <= LARGEST),
]
Density = Annotated[
    AnySetting,
    _each("must be above 0 and at most 1 (the fraction of parameters that is kept)", lambda x: 0 < x <= 1),
    _each(f"must be at least {SMALLEST:g}, the smallest number of float32", lambda x: x >= SMALLEST),
]
Gamma = Annotated[
    AnySetting,
    _each("must be from 0 to below 1 (the fraction of largest values that is dropped)", lambda x: 0 <= x < 1),
]
Norm = Annotated[
    Number, _each(f"must be above 0 and at most {LARGEST:g} (a multiple of norm_of's norm)", lambda x: 0 < x <= LARGEST)
]


class Value(BaseModel):
    """A frozen value that accepts no further keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRef(Value):
    """One model that is merged, with its name in the audit and in `protect`.

    density: fraction of the task vector that is kept, in (0, 1]. gamma: fraction of the largest values that is dropped
    (breadcrumbs). epsilon: half the spread of keep probabilities (della). random_signs: whether the signs of its task
    vector are drawn at random (a control). scale: factor of its weights (passthrough). adapter: a LoRA folder whose
    base is `path`. layers: the layers that it gives to a slice, first and last, both included; None elsewhere.
    """

    name: str
    path: Folder
    adapter: Folder | None = None
    weight: Finite = MODEL_DEFAULTS["weight"]
    density: Density = MODEL_DEFAULTS["density"]
    gamma: Gamma = MODEL_DEFAULTS["gamma"]
    epsilon: AnySetting = MODEL_DEFAULTS["epsilon"]
    random_signs: StrictBool = MODEL_DEFAULTS["random_signs"]
    scale: Finite = MODEL_DEFAULTS["scale"]
    layers: Layers = None

    def to_dict(self, method: Method) -> dict[str, Any]:
        """Return plain data from which a recipe reads this model."""
        out: dict[str, Any] = {"path": str(self.path)}
        if self.adapter is not None:
            out["adapter"] = str(self.adapter)
        if self.layers is not None:
            out["layers"] = "{}-{}".format(*self.layers)
        return out | {key: per_tensor.to_plain(getattr(self, key)) for key in method.model_keys}

    def absolute(self) -> ModelRef:
        """Return a copy with absolute paths."""
        return self.model_copy(update={"path": _absolute(self.path), "adapter": _absolute(self.adapter)})


class Recipe(Value):
    """A complete merge. Build one with `Recipe.from_dict` or `from_yaml`: they fill in the method's defaults."""

    _own_key: ClassVar[str] = "slices"  # which a slice of a recipe does not have
    method: str
    base: Folder | None = None
    models: tuple[ModelRef, ...]
    lambda_: Finite = Field(1.0, alias="lambda")
    normalize: StrictBool
    norm: Norm | None = None
    norm_of: str | None = None
    slack: Annotated[Number, _each("must be 0 or larger (.inf is allowed)", lambda x: x >= 0)] = 0.0
    protect: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    slack_form: Literal["ratio", "difference"] = "ratio"
    slack_scale: Literal["none", "rms"] = "none"
    on_slack: Literal["protect", "both"] = "protect"
    slack_scope: Literal["all", "top"] = "all"
    slack_share: Fraction = 0.1
    election: Literal["unweighted", "weighted"] = "unweighted"
    rescale: Literal["none", "expectation", "l1"]
    t: Finite = 0.5
    select_topk: Density = 1.0
    seed: StrictInt = 0
    compute_dtype: Literal[Dtype, "inputs"] = "float32"
    out_dtype: Literal[Dtype, "base", "compute"] = "base"
    tokenizer: Name = "required"
    chat_template: Annotated[str, AfterValidator(_template)] | None = None
    special_rows: Name | None = None
    exact: StrictBool = True
    slices: tuple[Slice, ...] = ()

    def at(self, slice_: int | None) -> Recipe:
        """Return the settings for tensors of a slice; a recipe without slices has the same for all."""
        return self.slices[slice_] if slice_ is not None and self.slices else self

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

    @property
    def has_union(self) -> bool:
        """Return whether the result has the tokens of all models."""
        return self.tokenizer == "union" or self.tokenizer.startswith(UNION_OF)

    @property
    def norm_reference(self) -> str | None:
        """Return the model whose task vector's norm `norm` multiplies: the named one, or the only protected one."""
        return self.norm_of or (self.protect[0] if len(self.protect) == 1 else None)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe file, ours or mergekit's. Raises BadInput that names the file and the key."""
        path = Path(path)
        return cls.from_document(read_yaml(path, "a merge recipe (YAML)"), str(path), path.parent)

    @classmethod
    def from_document(cls, data: Any, where: str, root: Path) -> Recipe:
        """Build the recipe of a file's data in `root`, ours or mergekit's. Raises BadInput that begins with `where`."""
        if isinstance(data, dict) and "merge_method" in data:
            return cls.from_dict(mergekit.to_recipe_dict(data, where), where=where)
        return cls.from_dict(data, where=where, root=root)

    @classmethod
    def from_dict(cls, data: Any, where: str = "recipe", root: Path | None = None) -> Recipe:
        """Build the recipe of plain data as in YAML; the module's docstring lists the keys.

        Relative paths start at `root`. Raises BadInput that begins with `where` and names the key.
        """
        try:
            return cls.model_validate(data, context={"root": root})
        except ValidationError as error:
            raise BadInput(_one_line(error, where, data)) from None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> dict[str, Any]:
        """Reject keys that the method does not have, and fill in its defaults."""
        if not isinstance(data, Mapping):
            raise BadInput(f"expected a mapping with the keys method, base, models, got {type(data).__name__}.")
        method = METHODS.get(str(data.get("method")))
        if method is None:
            raise BadInput(
                f"method: no such method, got {data.get('method')!r}. {suggestion(data.get('method'), METHODS)}"
            )
        _check_keys(
            data,
            ("method", "base", "models", cls._own_key, *method.recipe_keys, *method.model_keys, *COMMON_KEYS),
            method,
        )
        if method.base and data.get("base") is None:
            raise BadInput(
                f"base: missing. Set the model that the others were trained from: method {method.name} needs it."
            )
        sliced = {"slices": _complete_slices(data, method)} if "slices" in data else {}
        of_all = {key: data[key] for key in method.model_keys if key in data}
        return {
            "normalize": method.normalize,
            "rescale": method.rescale,
            **{key: value for key, value in data.items() if key not in of_all},
            "models": _complete_models(data.get("models"), method, cls._own_key == "layers", of_all),
            **sliced,
        }

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        """Check rules that concern several keys."""
        known = [model.name for model in self.models]
        tokenizers = [*TOKENIZERS, *known, *(f"{UNION_OF}{name}" for name in known)]
        if self._own_key == "slices" and self.tokenizer not in tokenizers:
            raise BadInput(f"tokenizer: not known, got {self.tokenizer!r}. {suggestion(self.tokenizer, tokenizers)}")
        self._check_special_rows(known)
        if self.slices:  # each of them is checked by itself
            taken = {model.name for part in self.slices for model in part.models}
            if left := next((model.name for model in self.models if model.name not in taken), None):
                raise BadInput(f"models.{left}: no slice uses its layers. Leave the model out, or name it in a slice.")
            return self
        least, most = self.spec.counts
        if not least <= len(self.models) <= most:
            wanted = f"{least} model{'s' * (least > 1)}" if least == most else f"{least} or more models"
            raise BadInput(f"models: {self.method} needs {wanted} besides the base, got {len(self.models)}.")
        if "epsilon" in self.spec.model_keys:
            for model in self.models:
                _check_epsilon(model)
        for key, name in [("protect", name) for name in self.protect] + [("norm_of", self.norm_of)]:
            if name not in (*known, None):
                raise BadInput(f"{key}: no such model, got {name!r}. {suggestion(name, known)}")
        if self.norm is not None and self.norm_reference is None:
            raise BadInput(f"norm_of: missing. Set the model whose norm `norm` multiplies: one of {listed(known)}.")
        if self.slack_scale == "rms" and self.slack_form == "ratio":
            raise BadInput(
                "slack_scale: rms needs slack_form: difference, got ratio, which has no unit. Set one of them."
            )
        if self.slack > 0 and not self.protect:
            raise BadInput(
                f"protect: missing. Set the model that slack {self.slack:g} protects: one of {listed(known)}."
            )
        return self

    def _check_special_rows(self, known: Sequence[str]) -> None:
        name = self.special_rows
        if name is None or self._own_key == "layers":
            return
        models = ["base", *known] if self.base is not None else known
        if name not in models:
            raise BadInput(f"special_rows: no model is called {name!r}; the models are {', '.join(models)}")
        if self.slices:
            raise BadInput("special_rows: a merge by slices has none. Leave it out.")
        if self.tokenizer == "optional":
            raise BadInput("special_rows: goes by the names of tokens. Leave out `tokenizer: optional`.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `from_dict` builds an equal recipe."""
        out: dict[str, Any] = {"method": self.method}
        if self.base is not None:
            out["base"] = str(self.base)
        out["models"] = {model.name: model.to_dict(self.spec) for model in self.models}
        for key in (*self.spec.recipe_keys, *COMMON_KEYS):
            value = getattr(self, {"lambda": "lambda_"}.get(key, key))
            if key not in ("chat_template", "special_rows") or value is not None:
                out[key] = list(value) if key == "protect" else per_tensor.to_plain(value)
        if self.slices:
            out["slices"] = [part.to_part(self) for part in self.slices]
        return out

    def absolute(self) -> Self:
        """Return a copy with absolute paths, which means the same in every folder."""
        models = tuple(model.absolute() for model in self.models)
        parts = tuple(part.absolute() for part in self.slices)
        return self.model_copy(update={"base": _absolute(self.base), "models": models, "slices": parts})

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML with absolute paths."""
        write_atomic(Path(path), yaml.safe_dump(self.absolute().to_dict(), sort_keys=False))


class Slice(Recipe):
    """Layers of the result and their merge: a recipe whose models give some of their layers.

    layers: of the base, and of models that name none; first and last, both included.
    """

    _own_key: ClassVar[str] = "layers"
    layers: Layers = None

    @property
    def count(self) -> int:
        """Return the number of layers of the slice."""
        first, last = next(iter(self.ranges))[1]
        return last - first + 1

    @property
    def ranges(self) -> list[tuple[str, tuple[int, int]]]:
        """Return the layers of every model, then of the base, by name."""
        ranges = [(model.name, model.layers or self.layers or (0, -1)) for model in self.models]
        return ranges + ([("base", self.layers or (0, -1))] if self.base is not None else [])

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        """Check that all models of a slice give the same number of layers."""
        for name, (first, last) in self.ranges:
            if last < first:
                key = "layers" if name == "base" else f"models.{name}.layers"
                raise BadInput(f"{key}: missing. Give the layers that this slice takes, such as 0-3.")
            if last - first + 1 != self.count:
                raise BadInput(
                    f"all models of a slice must give the same number of layers, got {first}-{last} of {name} "
                    f"and {self.count} layers of {self.ranges[0][0]}."
                )
        return self

    def to_part(self, whole: Recipe) -> dict[str, Any]:
        """Return the settings of a slice that its recipe does not have."""
        out = {key: value for key, value in self.to_dict().items() if key not in ("method", *COMMON_KEYS)}
        if self.base == whole.base:
            out.pop("base", None)
        if self.layers is not None:
            out["layers"] = "{}-{}".format(*self.layers)
        for model in out["models"].values():
            model.pop("path"), model.pop("adapter", None)
        return out


def _absolute(path: Path | None) -> Path | None:
    """Return an absolute path; models of the Hub stay unchanged."""
    return path if path is None or str(path).startswith(PREFIX) else path.absolute()


def _complete_models(data: Any, method: Method, in_slice: bool, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models with their names inside. defaults: settings for models that give none.

    Raises BadInput for a model without a path, and for keys that the method does not have.
    """
    if not isinstance(data, Mapping) or not data:
        raise BadInput(
            f"models: expected a mapping of names to {{path: folder}}, got {type(data).__name__}."
            if data
            else "models: expected a mapping of names to {path: folder}, got an empty one."
        )
    keys = ("path", "adapter", *(("layers",) if in_slice else ()), *method.model_keys)
    if len({str(name) for name in data}) < len(data):
        raise BadInput("models: two models have the same name. Rename one of them.")
    for name, entry in data.items():
        if not isinstance(entry, Mapping) or "path" not in entry:
            numbers = "".join(f", {key}: number" for key in method.model_keys)
            raise BadInput(f"models.{name}.path: missing. Set models.{name} to {{path: folder{numbers}}}.")
        _check_keys(entry, keys, method, f"models.{name}: ")
    return [{"name": str(name), **defaults, **entry} for name, entry in data.items()]


def _complete_slices(data: Mapping[str, Any], method: Method) -> list[dict[str, Any]]:
    """Complete every slice and its models with the recipe's settings; each is then the data of a recipe.

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
        own = {str(name): _slice_model(name, entry, by_name, of_all, at) for name, entry in part["models"].items()}
        completed.append({**shared, **part, "models": own})
    return completed


def _slice_model(
    name: Any, entry: Any, models: Mapping[str, Any], of_all: Mapping[str, Any], at: str
) -> dict[str, Any]:
    """Return a model of a slice, with the settings of the slice (of_all) and of the recipe."""
    known = models.get(str(name))
    if not isinstance(known, Mapping):
        raise BadInput(f"{at}.models.{name}: no such model. {suggestion(name, models)}")
    if entry is not None and not isinstance(entry, Mapping):
        raise BadInput(f"{at}.models.{name}: expected {{layers: 0-3, ...}}.")
    if entry and ("path" in entry or "adapter" in entry):
        raise BadInput(f"{at}.models.{name}: path and adapter belong under the recipe's own models. Move them there.")
    return {**known, **of_all, **(entry or {})}


def _check_keys(entry: Mapping[str, Any], known: Sequence[str], method: Method, at: str = "") -> None:
    """Reject keys that a method does not have."""
    name = min(set(map(str, entry)) - set(known), default=None)
    if name is not None:
        having = [other.name for other in METHODS.values() if name in (*other.recipe_keys, *other.model_keys)]
        advice = f"Leave it out, or choose a method that has it: {listed(having)}."
        raise BadInput(
            f"{at}method {method.name} has no key {name}. {advice if having else suggestion(name, sorted(known))}"
        )


def _check_epsilon(model: ModelRef) -> None:
    """Reject keep probabilities outside of (0, 1)."""
    for density in per_tensor.values(model.density):
        for epsilon in per_tensor.values(model.epsilon):
            if density < 1 and not (epsilon >= 0 and density - epsilon > 0 and density + epsilon < 1):
                raise BadInput(
                    f"models.{model.name}.epsilon: density ± epsilon must be between 0 and 1, "
                    f"got {density:g} ± {epsilon:g}."
                )


def _one_line(error: ValidationError, where: str, data: Any) -> str:
    """Describe the first error: file, key, and what to do. data: the recipe that was read."""
    first = error.errors()[0]
    location: list[str] = []
    for part in first["loc"]:
        if not isinstance(part, int):
            location.append(str(part))
        elif location[-1] == "slices":
            location[-1] = f"slices[{part}]"
            data = data["slices"][part]
        elif location[-1] == "models":  # which are listed by name
            location.append(str(list(data["models"])[part]))
    message = sentence(first["msg"])
    if first["type"] != "value_error":  # one of ours has the value
        message = f"{message.removesuffix('.')}, got {first['input']!r}."
    if not location:
        return f"{where}: {message}"
    # for a list of rules the message begins with the place inside the value: `lambda` + `[0].kind: one of ...`
    return f"{where}: {'.'.join(location)}{'' if message[0] in '[.:' else ': '}{message}"
