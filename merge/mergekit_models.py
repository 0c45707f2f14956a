"""Names of models in mergekit configs: `path`, `path@revision`, `path+lora`, or the same as mappings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import BadInput

_MODEL, _PATH = {"model", "lora", "override_architecture"}, {"path", "revision"}


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
