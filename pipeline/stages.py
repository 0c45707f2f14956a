"""What makes each kind of stage; pipeline/kinds.py names the functions. The rooms are imported when a stage is made, not before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.units import format_tokens
from pipeline import recipes
from pipeline.execute import Job
from pipeline.run import launch
from train.settings import (
    BaseModelSettings,
    CorpusOptions,
    CorpusSettings,
    CtBlocksSettings,
    InstructionsSettings,
    ItemsSettings,
    SftBlocksSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    from eval.task_set import TaskSet
    from merge import Recipe


def corpus(job: Job) -> None:
    from train.data.corpus import build

    settings = CorpusSettings.from_mapping(job.stage.settings)
    build.build(settings, CorpusOptions.from_mapping(job.stage.options), job.out, job.work)


def items(job: Job) -> None:
    from train.data import instructions

    settings = ItemsSettings.from_mapping(job.stage.settings)
    instructions.build(job.folders["corpus"], settings, job.out, job.stage.options["sft_path"])


def instructions(job: Job) -> None:
    from train.data import instructions

    settings, options = InstructionsSettings.from_mapping(job.stage.settings), job.stage.options
    instructions.from_hub(settings, job.out, job.work, options["hub"]["dataset"], options.get("workers", 1))


def leaks(job: Job) -> None:
    from eval.task_texts import texts
    from train.data import contamination

    corpus, made = job.folders["corpus"], job.folders.get("instructions", job.folders["items"])
    settings, options = job.stage.settings, job.stage.options
    asked = (settings["split"], settings["limit"], settings["excerpt"])
    names = tuple(settings["tasks"])
    tasks = task_set(job.folders["items"], corpus, *asked, options["include_path"], names, settings["language"])
    files = contamination.all_training_files(corpus, made)
    contamination.report(texts(tasks), files, job.out, job.work, options.get("workers", 1))


def base(job: Job) -> None:
    from train import base_model

    settings, prepared = job.stage.settings, job.work / "prepared"
    if not (prepared / "whole").exists():
        base_model.prepare(job.folders["corpus"], BaseModelSettings.from_mapping(settings), prepared)
        (prepared / "whole").touch()
    training = TrainingSettings.from_mapping({**settings, "schedule_tokens": settings["tokens"]})
    job.launched = launch.train(job, prepared / "model", prepared / "blocks", training)
    shutil.rmtree(job.out / "state")  # nothing continues from here


def ct_blocks(job: Job) -> None:
    from train.data import packing

    settings, workers = CtBlocksSettings.from_mapping(job.stage.settings), job.stage.options.get("workers", 1)
    packing.ct_blocks(job.folders["corpus"], job.checkpoint("model"), settings, job.out, job.work, workers)
    job.note = packed(job.out)


def sft_blocks(job: Job) -> None:
    from train.data import packing

    settings, workers = SftBlocksSettings.from_mapping(job.stage.settings), job.stage.options.get("workers", 1)
    items, corpus = job.folders["items"], job.folders.get("corpus")
    packing.sft_blocks(items, corpus, job.checkpoint("model"), settings, job.out, job.work, workers)
    job.note = packed(job.out)


def packed(blocks: Path) -> str:
    """How many blocks there are, and how full they are."""
    counts = json.loads((blocks / "counts.json").read_text(encoding="utf-8"))
    return f": {counts['blocks']:,} blocks, {counts['real_token_share']:.2%} of their positions real tokens"


def ct(job: Job) -> None:
    check_budget(job.folders["blocks"], job.stage.settings["tokens"])
    _train(job, job.resume.path / "state" if job.resume else None)


def sft(job: Job) -> None:
    _train(job, None)
    shutil.rmtree(job.out / "state")  # nothing continues from here


def _train(job: Job, resume_state: Path | None) -> None:
    settings = TrainingSettings.from_mapping(job.stage.settings)
    job.launched = launch.train(job, job.checkpoint("model"), job.folders["blocks"], settings, resume_state)


def check_budget(blocks: Path, tokens: int) -> None:
    """Refuses a budget that the packed corpus cannot fill."""
    available = json.loads((blocks / "counts.json").read_text(encoding="utf-8"))["tokens"]
    if tokens > available:
        raise BadInput(
            f"ct.tokens={format_tokens(tokens)}: the corpus holds {available:,} tokens with its English share;"
            " take a smaller budget or more text"
        )


def merge(job: Job) -> None:
    import yaml

    import merge

    _use_threads(job)
    recipe = chosen_recipe(job, job.folders["tune"])
    audit = merge.audit(recipe)
    (job.out / "audit.json").write_text(json.dumps(audit, indent=1) + "\n", encoding="utf-8")
    described = recipe.to_dict()  # paths relative to where the entry will lie: the store can be moved
    lies_in = job.folders["tune"].parents[1] / "merge" / "entry"
    described["base"] = os.path.relpath(described["base"], lies_in)
    for model in described["models"].values():
        model |= {key: os.path.relpath(model[key], lies_in) for key in ("path", "adapter") if key in model}
    (job.out / "merge.yml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")


def weights(job: Job) -> None:
    import merge
    from merge import Recipe

    _use_threads(job)
    merge.write(Recipe.from_yaml(job.folders["merge"] / "merge.yml"), job.out / "model")


def evaluate(job: Job) -> None:
    from eval import harness

    _use_threads(job)
    settings = job.settings
    own, names = settings["include_path"], tuple(settings["tasks"])
    taken = (settings["split"], settings["limit"], settings["excerpt"])
    tasks = task_set(job.folders["items"], job.folders["corpus"], *taken, own, names, settings["language"])
    how: dict[str, Any] = {"batch_tokens": settings["batch_tokens"], "device": settings["device"]}
    if "merge" in job.stage.parents:
        from transformers import AutoTokenizer

        import merge
        from merge import Recipe

        model = merge.load(Recipe.from_yaml(job.folders["merge"] / "merge.yml"), settings["device"])
        scores = harness.evaluate(model, AutoTokenizer.from_pretrained(job.checkpoint("model")), tasks, **how)
    else:
        scores = harness.evaluate_folder(job.checkpoint("checkpoint"), tasks, **how)
    harness.write(scores, job.out)


@cache
def task_set(
    items: Path,
    corpus: Path,
    split: str,
    limit: int | None,
    excerpt: int | None,
    own: str | None = None,
    names: tuple[str, ...] = (),
    language: str = "und",
) -> TaskSet:
    """The tasks of a split, built once a process: every checkpoint is scored on the same ones."""
    from eval import task_set

    folder = None if own is None else Path(own)
    made = items / "tasks" if any((items / "tasks").iterdir()) else None  # no families: none of our own
    return task_set.prepare(
        made, corpus / "text", split=split, limit=limit, excerpt=excerpt, include_path=folder, names=names, language=language
    )


def chosen_recipe(job: Job, tuned: Path) -> Recipe:
    """The merge of this cell's checkpoints by the settings that `tune` chose."""
    import yaml

    return recipe_of(job, yaml.safe_load((tuned / "choice.yml").read_text(encoding="utf-8")))


def recipe_of(job: Job, settings: Mapping[str, Any]) -> Recipe:
    """The merge of a job's three checkpoints by these settings (one of a method's tries)."""
    from merge import Recipe

    base, ct, sft = (job.checkpoint(role).absolute() for role in ("model", "ct", "sft"))
    recipe = recipes.complete(settings, base, ct, sft, seed=job.settings["seed"])
    for role in ("ct", "sft"):
        adapter = job.folders[role].absolute() / "adapter"
        if adapter.is_dir():  # LoRA: a few megabytes are read beside the base, not a second model
            recipe["models"][role] |= {"path": str(base), "adapter": str(adapter)}
    return Recipe.from_dict(recipe, where=str(job.stage))


def _use_threads(job: Job) -> None:
    import torch

    torch.set_num_threads(job.settings["threads"])
