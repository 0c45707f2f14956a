"""How many tokens lm-eval tasks in a user's folder let a model generate, read from their YAMLs without lm-eval."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from eval.task_checks import GENERATED, LENGTH_KEYS
from pipeline.config import Config


class _Loader(yaml.SafeLoader):
    """Reads YAML whose tags it does not know, such as lm-eval's !function, as nothing."""


_Loader.add_multi_constructor("!", lambda loader, tag, node: None)


def generated_tokens(config: Config) -> int:
    """Return how many tokens one document of each scored task lets a model generate, in all.

    Of tasks in eval.include_path. What lm-eval ships is not read here, and counts as tasks that generate nothing.
    """
    if config.eval.include_path is None:
        return 0
    lengths = _lengths(Path(config.eval.include_path))
    wanted = config.eval.tasks or list(lengths)
    return sum(lengths.get(name, 0) for name in wanted)


@cache
def _lengths(folder: Path) -> dict[str, int]:
    """Return by task the tokens that a document lets a model generate; 0 for tasks that generate nothing."""
    lengths: dict[str, int] = {}
    for path in sorted(folder.rglob("*.yaml")):
        task = _read(path)
        if isinstance(name := task.get("task"), str):
            settings = task.get("generation_kwargs") or {}
            length = next((settings[key] for key in LENGTH_KEYS if settings.get(key) is not None), GENERATED)
            lengths[name] = int(length) if task.get("output_type") == "generate_until" else 0
    return lengths


def _read(path: Path, depth: int = 0) -> Mapping[str, Any]:
    """Return a task's YAML on top of the one that it includes; empty if it cannot be read, which a check reports."""
    try:
        stated = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(stated, dict):
        return {}
    below = stated.get("include")
    if not isinstance(below, str) or depth > 5:
        return stated
    return {**_read(path.parent / below, depth + 1), **stated}
