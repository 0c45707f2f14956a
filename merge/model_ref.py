"""One model of a recipe: its folder and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.hub import PREFIX
from merge import per_tensor
from merge.method_table import MODEL_DEFAULTS, Method
from merge.recipe_fields import (
    AnySetting,
    Boolean,
    Density,
    Finite,
    Folder,
    Gamma,
    Layers,
    Value,
    unknown_keys,
)


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
    random_signs: Boolean = MODEL_DEFAULTS["random_signs"]
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
        return self.model_copy(update={"path": absolute(self.path), "adapter": absolute(self.adapter)})


def absolute(path: Path | None) -> Path | None:
    """Return an absolute path; models of the Hub stay unchanged."""
    return path if path is None or str(path).startswith(PREFIX) else path.absolute()


def model_entries(data: Any, method: Method, in_slice: bool, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
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
        if wrong := unknown_keys(entry, keys, method.name):
            raise BadInput(f"models.{name}: {wrong}")
    return [{"name": str(name), **defaults, **entry} for name, entry in data.items()]


def check_epsilon(model: ModelRef) -> None:
    """Reject keep probabilities outside of (0, 1)."""
    for density in per_tensor.values(model.density):
        for epsilon in per_tensor.values(model.epsilon):
            if density < 1 and not (epsilon >= 0 and density - epsilon > 0 and density + epsilon < 1):
                raise BadInput(
                    f"models.{model.name}.epsilon: density ± epsilon must be between 0 and 1, "
                    f"got {density:g} ± {epsilon:g}."
                )
