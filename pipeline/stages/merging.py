"""The stages that merge: `merge` (the recipe and its audit) and `weights` (a merge as a checkpoint folder).

Each kind has its settings, its planner and its function side by side. Plans need no torch and no files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.settings import Settings
from pipeline.config import Config
from pipeline.recipes import recipe_of
from pipeline.stages import tuning
from pipeline.stages.stage import Stage, StageType
from pipeline.stages.tuning import Trial

if TYPE_CHECKING:
    from pipeline.execute import Job


class DeviceOptions(Settings):
    device: str
    threads: int


class MergeSettings(Settings):
    """seed: of what a method draws. stated: the recipe, where no stage `tune` selects it."""

    seed: int
    stated: Trial | None = None


def plan_merge(config: Config, slug: str, stated: Trial | None, parents: Mapping[str, Stage]) -> Stage:
    """Plan a merge of these parents by a recipe, or by the one that the parents `tune` select."""
    settings = MergeSettings(seed=config.seed, stated=stated)
    return Stage(MERGE, slug, settings, parents, DeviceOptions.pick(config.compute))


def run_merge(job: Job[MergeSettings, DeviceOptions]) -> None:
    import torch
    import yaml

    import merge

    torch.set_num_threads(job.options.threads)
    recipe = recipe_of(job, job.settings.stated or tuning.selected_trial(job)[1], job.settings.seed)
    audit = merge.audit(recipe)
    (job.out / "audit.json").write_text(json.dumps(audit, indent=1) + "\n", encoding="utf-8")
    described = recipe.to_dict()
    entry = job.out.absolute().parents[2] / "merge" / "entry"
    described["base"] = os.path.relpath(described["base"], entry)  # relative to the entry: the store can be moved
    for model in described["models"].values():
        model |= {key: os.path.relpath(model[key], entry) for key in ("path", "adapter") if key in model}
    (job.out / "merge.yml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")


MERGE = StageType("merge", run_merge, 2, "merge", 1)


def plan_weights(config: Config, merge: Stage, parents: Mapping[str, Stage]) -> Stage:
    """Plan the weights of a merge of these parents."""
    return Stage(WEIGHTS, merge.slug, parents={**parents, "merge": merge}, options=DeviceOptions.pick(config.compute))


def run_weights(job: Job[Settings, DeviceOptions]) -> None:
    import torch

    import merge
    from merge import Recipe

    torch.set_num_threads(job.options.threads)
    merge.write(Recipe.from_yaml(job.folders["merge"] / "merge.yml"), job.out / "model")


WEIGHTS = StageType("weights", run_weights, 1, "merge", 2)
