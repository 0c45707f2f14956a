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
    out_dtype: base        # the base's own dtype, `compute`, or a name
    tokenizer: required    # or optional: neither asked for nor compared; union, base, or a model: rows by token
    chat_template: auto    # or chatml, or a template; the base's own without this key
    special_rows: sft      # rows of tokens that this model's chat template writes are its own; all merged without it
    exact: true            # a single whole model is copied, not recomputed as θ0 + (θ − θ0), which rounds
    slices:                # layers restacked: each slice a merge of its own, settings not given are those above
      - {layers: 0-1, models: {ct: {weight: 0.7}, sft: {}}}
      - {layers: 2-3, models: {ct: {layers: 1-2}, sft: {}}}

Relative paths are relative to the YAML file. A file with the key `merge_method` is read as a mergekit config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from common.errors import BadInput, listed, suggestion
from common.files import write_atomic
from common.validation import read_yaml
from merge import mergekit, per_tensor
from merge import slices as restacked
from merge.method_table import COMMON_KEYS, METHODS, Method
from merge.model_ref import ModelRef, absolute, check_epsilon, model_entries
from merge.recipe_fields import (
    TOKENIZERS,
    Boolean,
    ComputeDtype,
    Density,
    Election,
    Finite,
    Folder,
    Form,
    Layers,
    Name,
    Names,
    Norm,
    OnSlack,
    OutDtype,
    Rescale,
    Scale,
    Scope,
    Share,
    Slack,
    Template,
    Tokenizer,
    Value,
    WholeNumber,
    one_line,
    unknown_keys,
)


class Recipe(Value):
    """A complete merge. Build one with `Recipe.from_dict` or `from_yaml`: they fill in the method's defaults."""

    _own_key: ClassVar[str] = "slices"  # what a slice of a recipe has not
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
    select_topk: Density = 1.0
    seed: WholeNumber = 0
    compute_dtype: ComputeDtype = "float32"
    out_dtype: OutDtype = "base"
    tokenizer: Tokenizer = "required"
    chat_template: Template = None
    special_rows: Name = None
    exact: Boolean = True
    slices: tuple[Slice, ...] = ()

    def at(self, slice_: int | None) -> Recipe:
        """Return the settings for tensors of a slice; a recipe without slices has the same for all."""
        return self.slices[slice_] if slice_ is not None and self.slices else self

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

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
            raise BadInput(one_line(error, where, data)) from None

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
        known = sorted(
            ("method", "base", "models", cls._own_key, *method.recipe_keys, *method.model_keys, *COMMON_KEYS)
        )
        if wrong := unknown_keys(data, known, method.name):
            raise BadInput(wrong)
        if method.base and data.get("base") is None:
            raise BadInput(
                f"base: missing. Set the model that the others were trained from: method {method.name} needs it."
            )
        sliced = {"slices": restacked.complete(data, method)} if "slices" in data else {}
        of_all = {key: data[key] for key in method.model_keys if key in data}
        return {
            "normalize": method.normalize,
            "rescale": method.rescale,
            **{key: value for key, value in data.items() if key not in of_all},
            "models": model_entries(data.get("models"), method, cls._own_key == "layers", of_all),
            **sliced,
        }

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        """Check rules that concern several keys."""
        known = [model.name for model in self.models]
        if self._own_key == "slices" and self.tokenizer not in (*TOKENIZERS, *known):
            raise BadInput(
                f"tokenizer: not known, got {self.tokenizer!r}. {suggestion(self.tokenizer, (*TOKENIZERS, *known))}"
            )
        self._check_special_rows(known)
        if self.slices:  # each of them is looked at by itself
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
                check_epsilon(model)
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
        return self.model_copy(update={"base": absolute(self.base), "models": models, "slices": parts})

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
        found = [(model.name, model.layers or self.layers or (0, -1)) for model in self.models]
        return found + ([("base", self.layers or (0, -1))] if self.base is not None else [])

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        """Check that all models of a slice give the same number of layers."""
        for name, (first, last) in self.ranges:
            if last < first:
                place = "layers" if name == "base" else f"models.{name}.layers"
                raise BadInput(f"{place}: missing. Give the layers that this slice takes, such as 0-3.")
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
