"""A setting that may differ between tensors: one value, a gradient over depth, or rules by module.

Written in YAML as

    density: 0.5                                   # everywhere
    density: [0.2, 0.8]                            # from the first layer to the last, linearly in between
    density:                                       # the first rule that matches decides
      - {kind: mlp, layers: 0-3, value: 0.3}
      - {filter: q_proj, value: [0.2, 0.4]}
      - {value: 1.0}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from common.errors import BadInput, listed
from merge.checkpoints.tensor_names import KINDS, kind_of, layer_of


@dataclass(frozen=True)
class Rule:
    """A value for the tensors that meet every given condition. `filter`: a part of the tensor's name."""

    value: float | tuple[float, ...]
    kind: str | None = None
    layers: tuple[int, int] | None = None
    filter: str | None = None

    def matches(self, name: str) -> bool:
        if self.kind is not None and self.kind != kind_of(name):
            return False
        if self.filter is not None and self.filter != "*" and self.filter not in name:
            return False
        layer = layer_of(name)
        return self.layers is None or (layer is not None and self.layers[0] <= layer <= self.layers[1])


Setting = float | tuple[float, ...] | tuple[Rule, ...]


def applying(setting: Setting, name: str, key: str) -> float | tuple[float, ...]:
    """Return the number or gradient for tensor `name`. Raises BadInput that names `key` if no rule matches."""
    if not isinstance(setting, tuple):
        return float(setting)
    if not isinstance(setting[0], Rule):
        return setting  # type: ignore[return-value]
    for rule in setting:
        assert isinstance(rule, Rule)
        if rule.matches(name):
            return rule.value
    raise BadInput(f"{key}: no rule matches tensor {name}. End the list with a rule that has only a value.")


def resolve(setting: Setting, name: str, depth: float, *, key: str = "setting") -> float:
    """Return the value of `setting` for tensor `name` at `depth`, from 0 (the first layer) to 1 (the last)."""
    value = applying(setting, name, key)
    if not isinstance(value, tuple):
        return float(value)
    scaled = depth * (len(value) - 1)
    below = int(scaled)
    above = min(below + 1, len(value) - 1)
    part = scaled - below
    return (1 - part) * value[below] + part * value[above]


def values(setting: Setting) -> tuple[float, ...]:
    """List every number in a setting."""
    if not isinstance(setting, tuple):
        return (float(setting),)
    return tuple(
        number for part in setting for number in (values(part.value) if isinstance(part, Rule) else (float(part),))
    )


def parse(value: Any, key: str = "") -> Setting:
    """Read a setting from YAML. Raises BadInput that begins with `key` and the place inside the value."""
    if isinstance(value, list):
        if not value:
            raise BadInput(f"{key}: must not be an empty list. Give a number, a list of numbers, or rules.")
        if all(isinstance(part, dict) for part in value):
            return tuple(_rule(part, f"{key}[{i}]") for i, part in enumerate(value))
        return tuple(number(part, f"{key}[{i}]") for i, part in enumerate(value))
    if isinstance(value, dict):
        return (_rule(value, key),)
    return number(value, key)


def number(value: Any, key: str = "") -> float:
    """Parse a float; YAML reads 1e-3 as text, so text that is a number counts."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadInput(f"{key}: expected a number, got {value!r}.")
    try:
        return float(value)
    except OverflowError:
        raise BadInput(f"{key}: expected a number, got one that is too large for a float.") from None
    except ValueError:
        raise BadInput(f"{key}: expected a number, got {value!r}.") from None


def _rule(part: dict[str, Any], key: str) -> Rule:
    unknown = set(part) - {"value", "kind", "layers", "filter"}
    if unknown or "value" not in part:
        raise BadInput(
            f"{key}: a rule must have `value` and may have kind, layers and filter, got "
            f"{listed(sorted(map(str, part)))}."
        )
    value = parse(part["value"], f"{key}.value")
    if isinstance(value, tuple) and isinstance(value[0], Rule):
        raise BadInput(f"{key}.value: must be a number or a list of numbers, got rules within a rule.")
    if part.get("kind") not in (None, *KINDS):
        raise BadInput(f"{key}.kind: must be one of {', '.join(KINDS)}, got {part['kind']!r}.")
    filter_ = part.get("filter")
    if filter_ is not None and not isinstance(filter_, str):
        raise BadInput(f"{key}.filter: must be a part of a tensor's name, got {filter_!r}.")
    layers = layer_range(part.get("layers"), f"{key}.layers")
    return Rule(value, part.get("kind"), layers, filter_)  # type: ignore[arg-type]


def layer_range(text: Any, key: str = "") -> tuple[int, int] | None:
    """Parse the first and last layer of a range. Raises BadInput that names `key`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", str(text), re.ASCII)
    if not match:
        raise BadInput(f"{key}: must be a layer or a range such as 0-3 (both ends included), got {text!r}."[:500])
    first, last = int(match.group(1)), int(match.group(2) or match.group(1))
    if last < first:
        raise BadInput(f"{key}: a range must begin with its smaller layer, got {text}. Swap the two.")
    return first, last


def to_plain(setting: Setting) -> Any:
    """Return the setting for YAML and JSON: the inverse of `parse`."""
    if not isinstance(setting, tuple):
        return setting
    plain: list[Any] = []
    for part in setting:
        if not isinstance(part, Rule):
            plain.append(part)
            continue
        layers = None if part.layers is None else f"{part.layers[0]}-{part.layers[1]}"
        rule = {"kind": part.kind, "layers": layers, "filter": part.filter, "value": to_plain(part.value)}
        plain.append({key: value for key, value in rule.items() if value is not None})
    return plain
