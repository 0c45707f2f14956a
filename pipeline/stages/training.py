"""Config -> the stages that checkpoints are made by: text, items, blocks, trainings. Pure: no torch, no files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from common import hub
from common.errors import BadInput
from common.units import format_tokens
from pipeline.config import CipherCorpus, Config, Training
from pipeline.execute import Job
from pipeline.run import launch
from pipeline.stages import tuning
from pipeline.stages.data import Data, bible_corpus, check_budget
from pipeline.stages.stage import TRUNK, Inputs, Stage
from train.stage_settings import (
    BaseModelSettings,
    TrainingSettings,
)

TRAINING_KEYS = (
    "tokens",
    "batch_tokens",
    "block_size",
    "learning_rate",
    "min_lr_ratio",
    "warmup_ratio",
    "weight_decay",
)


def base_model(config: Config, inputs: Inputs, data: Data | None = None) -> Stage:
    """The model that everything starts from: given, or trained from scratch, which needs the data."""
    model = config.model
    if model.path is not None:
        return given_model(model.name, model.path, inputs.model, "model" in inputs.special_tokens)
    assert model.recipe is not None and data is not None
    recipe = model.recipe.model_dump(exclude={"save_every_tokens", "dev_every_tokens"})
    corpus = bible_corpus(config.corpus, inputs) if isinstance(config.corpus, CipherCorpus) else data.corpus
    settings = {**recipe, "language": corpus.settings["language"], **_precision(config)}
    options = {"compute": _compute(config), "save_every_tokens": model.recipe.save_every_tokens}
    return Stage("base", model.name, settings, {"corpus": corpus}, options)


def chat_model(config: Config, inputs: Inputs) -> Stage:
    """The SFT checkpoint that was given."""
    assert config.sft.source is not None
    return given_model("sft-en", config.sft.source, inputs.sft_model, "sft_model" in inputs.special_tokens)


def given_model(slug: str, path: str, known: str | None, special_tokens: bool = False) -> Stage:
    """A model from outside, known by a checksum, or by its commit on the Hub, which is then the one that is fetched.

    special_tokens: whether its tokenizer puts some around a text. It is a part of the key, as what is trained and
    scored with such a tokenizer has changed.
    """
    of_hub = known is not None and known.startswith(hub.PREFIX)
    settings = {"sha256": known, **({"special_tokens": True} if special_tokens else {})}
    return Stage("model", slug, settings, options={"path": known if of_hub else path})


def continual_training(slug: str, config: Config, parents: Mapping[str, Stage]) -> Stage:
    """CT of `model` on `blocks`; under a wsd schedule the decay of this budget, from a trunk that budgets share."""
    stage = training("ct", slug, config, parents)
    if config.ct.schedule == "cosine":
        return stage
    trunk = config.ct.tokens // config.ct.batch_tokens * config.ct.batch_tokens - config.ct.decay_tokens
    if not trunk:
        return stage
    not_in_trunk = ("decay_tokens", "decay_shape")
    shared = {name: value for name, value in stage.settings.items() if name not in not_in_trunk}
    slug = f"{slug}-trunk-{format_tokens(trunk)}"
    return replace(
        stage, parents={**parents, TRUNK: Stage("ct", slug, {**shared, "tokens": trunk}, parents, stage.options)}
    )


def training(kind: Literal["ct", "sft"], slug: str, config: Config, parents: Mapping[str, Stage]) -> Stage:
    """A training by the config's section of this kind, of `model` on `blocks`."""
    section: Training = config.ct if kind == "ct" else config.sft
    horizon = config.ct.schedule_tokens if kind == "ct" else config.sft.schedule_tokens or config.sft.tokens
    lora, ct = config.train.lora, config.ct
    whole_text = kind == "ct" and ct.whole_text
    decay: dict[str, Any] = {}
    if kind == "ct" and ct.schedule == "wsd":
        decay = {"schedule": ct.schedule, "decay_tokens": ct.decay_tokens, "decay_shape": ct.decay_shape}
    settings = {
        **{name: getattr(section, name) for name in TRAINING_KEYS},
        "schedule_tokens": horizon,
        "seed": config.seed,
        **_precision(config),
        **({"lora": lora.model_dump()} if lora else {}),
        **decay,
        **({"tokens": None, "schedule_tokens": None} if whole_text else {}),
    }
    options = {
        **({"expected_tokens": ct.tokens} if whole_text else {}),
        "compute": _compute(config),
        "save_every_tokens": section.save_every_tokens,
        "keep_last_state": config.compute.keep_last_state,
    }
    if section.dev_every_tokens:
        options |= {"dev_every_tokens": section.dev_every_tokens, "dev_languages": [config.language.code, "en"]}
    return Stage(kind, slug, settings, parents, options)


def _precision(config: Config) -> dict[str, str]:
    """Omitted at fp32, so that keys stay. published: the dtype of the weights, which once was that of the passes."""
    precision = config.compute.precision
    return {} if precision == "fp32" else {"precision": precision, "published": "float32"}


def _compute(config: Config) -> dict[str, Any]:
    """How a training is computed, as `train.parallel.Compute` takes it."""
    return config.compute.model_dump(exclude={"stage_seconds", "keep_last_state"})


def run_base(job: Job) -> None:
    from train import base_model

    settings, prepared = job.settings, job.work / "prepared"
    if not (prepared / "whole").exists():
        base_model.prepare(job.folders["corpus"], BaseModelSettings.from_mapping(settings), prepared)
        (prepared / "whole").touch()
    training = TrainingSettings.from_mapping({**settings, "schedule_tokens": settings["tokens"]})
    launch.train(job, prepared / "model", prepared / "blocks", training)
    shutil.rmtree(job.out / "state")  # nothing continues from here


def run_ct(job: Job) -> None:
    if job.settings["tokens"] is not None:
        check_budget(job.folders["blocks"], job.settings["tokens"])
    _train(job, job.resume.path / "state" if job.resume else None)
    if job.stage.trajectory is None:  # a decay: nothing continues from its end
        shutil.rmtree(job.out / "state")


def run_sft(job: Job) -> None:
    if "trainings" in job.settings:  # the tries of CT-then-SFT, chosen among on dev
        number, _ = tuning.selected_trial(job)
        settings = TrainingSettings.from_mapping(job.settings["trainings"][number])
        launch.train(job, job.checkpoint("model"), job.folders[f"blocks-{number}"], settings)
    else:
        _train(job, None)
    shutil.rmtree(job.out / "state")  # nothing continues from here


def _train(job: Job, resume_state: Path | None) -> None:
    settings = TrainingSettings.from_mapping({**job.settings, **budget_of(job)})
    launch.train(job, job.checkpoint("model"), job.folders["blocks"], settings, resume_state)


def budget_of(job: Job) -> dict[str, int]:
    """The tokens of a training on all of the text, as its blocks have them: whole steps. Empty where they are stated.

    Raises BadInput for a text that is shorter than one step.
    """
    if job.settings["tokens"] is not None:
        return {}
    counts = json.loads((job.folders["blocks"] / "counts.json").read_text(encoding="utf-8"))
    step: int = job.settings["batch_tokens"]
    if counts["tokens"] < step:
        raise BadInput(
            f"ct.batch_tokens={format_tokens(step)}: the text with its English share has {counts['tokens']:,} tokens,"
            " less than one step. Set fewer tokens a step, or give more text."
        )
    tokens = counts["tokens"] // step * step
    return {"tokens": tokens, "schedule_tokens": tokens}
