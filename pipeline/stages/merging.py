"""TODO."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pipeline.execute import Job
from pipeline.job_settings import (
    DeviceOptions,
    MergeSettings,
)
from pipeline.recipes import recipe_of
from pipeline.stages import tuning

if TYPE_CHECKING:
    from merge import Recipe


def run_merge(job: Job) -> None:
    import torch
    import yaml

    import merge

    torch.set_num_threads(DeviceOptions(**job.options).threads)
    recipe = chosen_recipe(job)
    audit = merge.audit(recipe)
    (job.out / "audit.json").write_text(json.dumps(audit, indent=1) + "\n", encoding="utf-8")
    described = recipe.to_dict()  # paths relative to where the entry will lie: the store can be moved
    lies_in = job.out.absolute().parents[2] / "merge" / "entry"
    described["base"] = os.path.relpath(described["base"], lies_in)
    for model in described["models"].values():
        model |= {key: os.path.relpath(model[key], lies_in) for key in ("path", "adapter") if key in model}
    (job.out / "merge.yml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")


def run_weights(job: Job) -> None:
    import torch

    import merge
    from merge import Recipe

    torch.set_num_threads(DeviceOptions(**job.options).threads)
    merge.write(Recipe.from_yaml(job.folders["merge"] / "merge.yml"), job.out / "model")


def chosen_recipe(job: Job) -> Recipe:
    """The merge of this cell's checkpoints by the settings that `tune` chose, or that are stated."""
    settings = MergeSettings(**job.settings)
    return recipe_of(job, settings.stated or tuning.selected_trial(job)[1], settings.seed)
