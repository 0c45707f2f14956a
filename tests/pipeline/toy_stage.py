"""A stage of free settings, for tests of what stages are made for, not of what they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.stages.stage import Stage


def toy_stage(
    kind: str,
    slug: str,
    settings: Mapping[str, Any] | None = None,
    parents: Mapping[str, Stage] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Stage:
    """Return a stage of a kind with any settings and options."""
    return Stage(kind, slug, settings or {}, parents or {}, options or {})
