"""A stage of free settings, for tests of what stages are made for, not of what they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict

from common.settings import Settings
from pipeline.stages import STAGE_TYPES
from pipeline.stages.stage import GIVEN, Stage
from pipeline.stages.training import TrainingOptions
from train.settings import Compute


class FreeSettings(Settings):
    """Any values by any names."""

    model_config = ConfigDict(extra="allow")


class FreeTraining(TrainingOptions):
    """Any values too."""

    model_config = ConfigDict(extra="allow")

    compute: Compute = Compute()
    save_every_tokens: int = 10**9


def toy_stage(
    kind: str,
    slug: str,
    settings: Mapping[str, Any] | Settings = FreeSettings(),  # noqa: B008 (frozen)
    parents: Mapping[str, Stage] | None = None,
    options: Mapping[str, Any] | Settings = FreeSettings(),  # noqa: B008
) -> Stage:
    """Return a stage of a kind with any settings and options."""
    types = {**STAGE_TYPES, GIVEN.name: GIVEN}
    settings = settings if isinstance(settings, Settings) else FreeSettings(**settings)
    free = FreeTraining if types[kind].trained else FreeSettings
    return Stage(types[kind], slug, settings, parents or {}, free(**dict(options)))
