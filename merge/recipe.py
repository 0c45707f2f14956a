"""A merge as a value: which checkpoints, which method, which per_tensor.

Our schema, as YAML:

    method: ties_sv
    base: path/to/base
    models:
      ct:  {path: path/to/ct,  weight: 1.0, density: 0.5}
      sft: {path: path/to/sft, weight: 1.0, density: 0.5}
    lambda: 1.0            # scale of the merged task vector
    normalize: true        # disjoint mean (true) or disjoint sum (false)
    slack: 0.5             # methods with a sign election only; its switches are in docs/merging.md
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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from common.errors import BadInput
from common.files import write_whole
from common.hub import PREFIX
from common.parsing import read_yaml
from merge import mergekit_yaml, per_tensor
from merge.method_table import COMMON_KEYS, METHODS, MODEL_DEFAULTS, Method
from merge.recipe_fields import (
    AnySetting,
    Boolean,
    ComputeDtype,
    Density,
    Election,
    Finite,
    Folder,
    Form,
    Gamma,
    Names,
    Norm,
    OnSlack,
    OutDtype,
    Rescale,
    Scale,
    Scope,
    Share,
    Slack,
    Tokenizer,
    Value,
    WholeNumber,
    one_line,
    unknown_keys,
)


class ModelRef(Value):
    """One model that is merged, by the name under which audit and `protect` speak of it.

    density: share of the task vector kept, in (0, 1]. gamma: share of the largest values dropped (breadcrumbs).
    epsilon: half the spread of keep probabilities (della). random_signs: whether the signs of its task vector are
    drawn (a control). adapter: a LoRA folder whose base is `path`.
    """

    name: str
    path: Folder
    adapter: Folder | None = None
    weight: Finite = MODEL_DEFAULTS["weight"]
    density: Density = MODEL_DEFAULTS["density"]
    gamma: Gamma = MODEL_DEFAULTS["gamma"]
    epsilon: AnySetting = MODEL_DEFAULTS["epsilon"]
    random_signs: Boolean = MODEL_DEFAULTS["random_signs"]


class Recipe(Value):
    """A merge, fully stated. Build one with `Recipe.from_dict` or `from_yaml`: they fill in the method's defaults."""

    method: str
    base: Folder | None = None
    models: tuple[ModelRef, ...]
    lambda_: Finite = Field(1.0, alias="lambda")
    normalize: Boolean
    norm: Norm = None
    norm_of: str | None = None
    slack: Slack = 0.0
    protect: Names = ()
    slack_form: Form = "ratio"
    slack_scale: Scale = "none"
    on_slack: OnSlack = "protect"
    slack_scope: Scope = "all"
    slack_share: Share = 0.1
    election: Election = "unweighted"
    rescale: Rescale
    t: Finite = 0.5
    seed: WholeNumber = 0
    compute_dtype: ComputeDtype = "float32"
    out_dtype: OutDtype = "base"
    tokenizer: Tokenizer = "required"
    exact: Boolean = True

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

    @property
    def norm_reference(self) -> str | None:
        """The model whose task vector's norm `norm` is a multiple of: the one named, or the only protected one."""
        return self.norm_of or (self.protect[0] if len(self.protect) == 1 else None)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe file, ours or mergekit's. Raises BadInput naming the file and the key."""
        path = Path(path)
        data = read_yaml(path, "a merge recipe (YAML)")
        if isinstance(data, dict) and "merge_method" in data:
            return cls.from_dict(mergekit_yaml.to_recipe_dict(data, str(path)), where=str(path))
        return cls.from_dict(data, where=str(path), root=path.parent)

    @classmethod
    def from_dict(cls, data: Any, where: str = "recipe", root: Path | None = None) -> Recipe:
        """Recipe of plain data as YAML gives it; see the module's text for the keys.

        Relative paths start at `root`. Raises BadInput that begins with `where` and names the key.
        """
        try:
            return cls.model_validate(data, context={"root": root})
        except ValidationError as error:
            raise BadInput(one_line(error, where, lambda i: str(list(data["models"])[i]))) from None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> dict[str, Any]:
        """Refuses keys that the method has not, and fills in its defaults."""
        if not isinstance(data, Mapping):
            raise BadInput(f"expected a mapping with the keys method, base, models; got {type(data).__name__}")
        method = METHODS.get(str(data.get("method")))
        if method is None:
            raise BadInput(f"method: one of {', '.join(METHODS)}; got {data.get('method')!r}")
        known = sorted(("method", "base", "models", *method.recipe_keys, *COMMON_KEYS))
        if wrong := unknown_keys(data, known, method.name):
            raise BadInput(wrong)
        if method.base and data.get("base") is None:
            raise BadInput(f"base: method {method.name} needs the model that the others start from")
        return {
            "normalize": method.normalize,
            "rescale": method.rescale,
            **data,
            "models": _model_entries(data.get("models"), method),
        }

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        """What no key can know alone."""
        least, most = self.spec.counts
        if not least <= len(self.models) <= most:
            wanted = f"{least}" if least == most else f"{least} or more"
            raise BadInput(f"models: {self.method} merges {wanted} (the base not counted); got {len(self.models)}")
        if "epsilon" in self.spec.model_keys:
            for model in self.models:
                _check_epsilon(model)
        known = [model.name for model in self.models]
        for key, name in [("protect", name) for name in self.protect] + [("norm_of", self.norm_of)]:
            if name not in (*known, None):
                raise BadInput(f"{key}: no model is called {name!r}; the models are {', '.join(known)}")
        if self.norm is not None and self.norm_reference is None:
            raise BadInput(f"norm_of: name the model whose norm norm is a multiple of, one of {', '.join(known)}")
        if self.slack_scale == "rms" and self.slack_form == "ratio":
            raise BadInput("slack_scale: rms goes with slack_form: difference; a ratio has no unit")
        if self.slack > 0 and not self.protect:
            raise BadInput(f"protect: name the model that slack {self.slack:g} protects, one of {', '.join(known)}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns into an equal recipe."""
        out: dict[str, Any] = {"method": self.method}
        if self.base is not None:
            out["base"] = str(self.base)
        out["models"] = {model.name: _model_dict(model, self.spec) for model in self.models}
        for key in (*self.spec.recipe_keys, *COMMON_KEYS):
            value = getattr(self, {"lambda": "lambda_"}.get(key, key))
            out[key] = list(value) if key == "protect" else per_tensor.to_plain(value)
        return out

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML with absolute paths, so that it means the same wherever it is read from."""
        models = tuple(
            model.model_copy(
                update={"path": _absolute(model.path), "adapter": model.adapter and _absolute(model.adapter)}
            )
            for model in self.models
        )
        absolute = self.model_copy(update={"base": self.base and _absolute(self.base), "models": models})
        write_whole(Path(path), yaml.safe_dump(absolute.to_dict(), sort_keys=False))


def _model_entries(data: Any, method: Method) -> list[dict[str, Any]]:
    """The models with their names inside; refuses what has no path, and keys that the method has not."""
    if not isinstance(data, Mapping) or not data:
        raise BadInput("models: expected a mapping from a model's name to {path: ...}")
    keys = ("path", "adapter", *method.model_keys)
    if len({str(name) for name in data}) < len(data):
        raise BadInput("models: two have the same name; give each one of its own")
    for name, entry in data.items():
        if not isinstance(entry, Mapping) or "path" not in entry:
            numbers = "".join(f", {key}: number" for key in method.model_keys)
            raise BadInput(f"models.{name}.path: missing; expected {{path: folder{numbers}}}")
        if wrong := unknown_keys(entry, keys, method.name):
            raise BadInput(f"models.{name}: {wrong}")
    return [{"name": str(name), **entry} for name, entry in data.items()]


def _check_epsilon(model: ModelRef) -> None:
    for density in per_tensor.values(model.density):
        for epsilon in per_tensor.values(model.epsilon):
            if density < 1 and not (epsilon >= 0 and density - epsilon > 0 and density + epsilon < 1):
                raise BadInput(
                    f"models.{model.name}.epsilon: density ± epsilon must lie inside (0, 1); "
                    f"got {density:g} ± {epsilon:g}"
                )


def _model_dict(model: ModelRef, method: Method) -> dict[str, Any]:
    out: dict[str, Any] = {"path": str(model.path)}
    if model.adapter is not None:
        out["adapter"] = str(model.adapter)
    return out | {key: per_tensor.to_plain(getattr(model, key)) for key in method.model_keys}


def _absolute(path: Path) -> Path:
    return path if str(path).startswith(PREFIX) else path.absolute()
