"""The stages that train: a base model from scratch, continual training (CT) and supervised fine-tuning (SFT).

Each kind has its planner and its function side by side. Plans need no torch and no files.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub
from common.errors import BadInput
from common.settings import Settings
from common.units import format_tokens
from pipeline.config import CipherCorpus, Config
from pipeline.config.trainings import Training
from pipeline.stages import tuning
from pipeline.stages.data import Data, block_counts, check_budget, plan_base_corpus
from pipeline.stages.stage import CALIBRATION, GIVEN, TRUNK, GivenOptions, GivenSettings, Inputs, Stage, StageType
from train.settings import BaseModelSettings, Compute, FrozenColumns, TrainingSettings

if TYPE_CHECKING:
    from pipeline.execute import Job


NO_AVERAGE: dict[str, Any] = {"averaged_checkpoints": None}
NO_DECAY: dict[str, Any] = {"decay_tokens": 0, "decay_shape": None, **NO_AVERAGE}


class TrainingOptions(Settings):
    """What a training needs besides its settings.

    keep_last_state: whether the trainer's state of the largest budget stays. dev_every_tokens: how often it is measured
    on held-out text of `dev_languages`; None: never.
    """

    compute: Compute
    save_every_tokens: int
    keep_last_state: bool = True
    dev_every_tokens: int | None = None
    dev_languages: tuple[str, ...] = ()


# --- base ---


def plan_base(config: Config, inputs: Inputs, data: Data | None = None) -> Stage:
    """Plan the model that everything starts from: given, or trained from scratch, which needs the data."""
    model = config.model
    if model.path is not None:
        return given_model(model.name, model.path, inputs.model, "model" in inputs.special_tokens)
    assert model.recipe is not None and data is not None
    corpus = plan_base_corpus(config.corpus, inputs) if isinstance(config.corpus, CipherCorpus) else data.corpus
    settings = BaseModelSettings.pick(model.recipe, config.compute, language=corpus.settings.language)
    options = TrainingOptions.pick(model.recipe, compute=Compute.pick(config.compute), dev_every_tokens=None)
    return Stage(BASE, model.name, settings, {"corpus": corpus}, options)


def plan_chat_model(config: Config, inputs: Inputs) -> Stage:
    """Plan the SFT checkpoint that was given."""
    assert config.sft.source is not None
    return given_model("sft-en", config.sft.source, inputs.sft_model, "sft_model" in inputs.special_tokens)


def given_model(slug: str, path: str, known: str | None, special_tokens: bool = False) -> Stage:
    """Return a model from outside, known by a checksum, or by its commit on the Hub, which is then what is fetched.

    special_tokens: whether its tokenizer puts some around a text.
    """
    of_hub = known is not None and known.startswith(hub.PREFIX)
    settings = GivenSettings(sha256=known, special_tokens=special_tokens)
    return Stage(GIVEN, slug, settings, options=GivenOptions(path=known if known and of_hub else path))


def run_base(job: Job[BaseModelSettings, TrainingOptions]) -> None:
    from train import base_model

    prepared = job.work / "prepared"
    if not (prepared / "whole").exists():
        base_model.prepare(job.folders["corpus"], job.settings, prepared)
        (prepared / "whole").touch()
    _train(job, prepared / "model", prepared / "blocks", job.settings.training)
    shutil.rmtree(job.out / "state")  # nothing continues from here


BASE = StageType("base", run_base, 1, "train", 250, shared=True, tracked=True)


# --- CT and SFT ---


def plan_ct(
    slug: str, config: Config, parents: Mapping[str, Stage], frozen_columns: FrozenColumns | None = None
) -> Stage:
    """Plan CT of `model` on `blocks`; under a wsd schedule its decay, from a trunk that budgets share.

    frozen_columns: those that the blocks of the parent `calibration` need most do not change; None: all change.
    """
    assert (CALIBRATION in parents) == (frozen_columns is not None)
    settings = ct_settings(config).replace(frozen_columns=frozen_columns)
    stage = Stage(CT, slug, settings, parents, training_options(config, config.ct))
    trunk = settings.steps * settings.batch_tokens - settings.decay_tokens
    if config.ct.schedule == "cosine" or not trunk:
        return stage
    shared = settings.replace(tokens=trunk, **NO_DECAY)
    below = replace(stage, slug=f"{slug}-trunk-{format_tokens(trunk)}", settings=shared)
    return replace(stage, parents={**parents, TRUNK: below})


def plan_mixed(slug: str, config: Config, parents: Mapping[str, Stage]) -> Stage:
    """Plan a training by the settings of CT on as many tokens as CT and SFT have together.

    It is of kind sft, as no larger budget continues from it.
    """
    tokens = config.ct.tokens + config.sft.tokens
    both = config.model_copy(update={"ct": config.ct.model_copy(update={"tokens": tokens, "schedule_tokens": tokens})})
    return Stage(SFT, slug, ct_settings(both), parents, training_options(both, both.ct))


def plan_sft(slug: str, config: Config, parents: Mapping[str, Stage]) -> Stage:
    """Plan SFT of `model` on `blocks`."""
    sft = config.sft
    settings = training_settings(config, sft, schedule_tokens=sft.schedule_tokens or sft.tokens)
    return Stage(SFT, slug, settings, parents, training_options(config, sft))


def ct_settings(config: Config) -> TrainingSettings:
    """Return the settings of CT by the config; only a wsd schedule decays. New tokens need their embeddings trained."""
    values = dict(NO_DECAY if config.ct.schedule == "cosine" else {} if config.ct.averages else NO_AVERAGE)
    if config.model.new_tokens and config.train.lora:
        values["train_embeddings"] = True
    return training_settings(config, config.ct, **values)


def training_settings(config: Config, section: Training, **values: Any) -> TrainingSettings:
    """Return the settings of a training by a section of the config."""
    return TrainingSettings.pick(section, config.compute, config.train, config, **values)


def training_options(config: Config, section: Training) -> TrainingOptions:
    """Return the options of a training by a section of the config."""
    return TrainingOptions.pick(
        section,
        config.compute,
        compute=Compute.pick(config.compute),
        dev_languages=(config.language.code, "en") if section.dev_every_tokens else (),
    )


def run_ct(job: Job[TrainingSettings, TrainingOptions]) -> None:
    settings, blocks = job.settings, job.folders["blocks"]
    if settings.whole_text:
        settings = settings.replace(**budget_of_blocks(blocks, settings.batch_tokens))
    else:
        check_budget(blocks, settings.tokens)
    _train(job, job.checkpoint("model"), blocks, settings, job.resume.path / "state" if job.resume else None)
    if job.stage.trajectory is None:  # a decay: nothing continues from its end
        shutil.rmtree(job.out / "state")


CT = StageType("ct", run_ct, 1, "train", 250, tracked=True)


class SelectedTraining(TrainingSettings):
    """One of several trainings, selected on dev when it is run. The other fields are those of the first."""

    trainings: tuple[TrainingSettings, ...]

    def key_content(self) -> dict[str, Any]:
        return super().key_content() | {"trainings": [training.key_content() for training in self.trainings]}


def plan_selected_sft(trials: Sequence[Stage], tunes: Mapping[str, Stage]) -> Stage:
    """Plan the training of the trials that is best on dev. tunes: what scored them, by role."""
    plain = trials[0]
    blocks = {f"blocks-{number}": trial.parents["blocks"] for number, trial in enumerate(trials)}
    settings = SelectedTraining.pick(plain.settings, trainings=tuple(trial.settings for trial in trials))
    parents = {"model": plain.parents["model"], **blocks, **tunes}
    return replace(plain, slug=f"{plain.slug}-chosen", settings=settings, parents=parents)


def run_sft(job: Job[TrainingSettings, TrainingOptions]) -> None:
    settings, blocks = job.settings, "blocks"
    if isinstance(settings, SelectedTraining):
        number, _ = tuning.selected_trial(job)
        settings, blocks = settings.trainings[number], f"blocks-{number}"
    _train(job, job.checkpoint("model"), job.folders[blocks], settings)
    shutil.rmtree(job.out / "state")  # nothing continues from here


SFT = StageType("sft", run_sft, 1, "train", 260, tracked=True)


def budget_of_blocks(blocks: Path, step: int) -> dict[str, int]:
    """Return the tokens of a training on all blocks: whole steps of `step` tokens.

    Raises BadInput for a text that is shorter than one step.
    """
    available: int = block_counts(blocks)["tokens"]
    if available < step:
        raise BadInput(
            f"ct.batch_tokens={format_tokens(step)}: the text with its English share has {available:,} tokens,"
            " less than one step. Set fewer tokens a step, or give more text."
        )
    tokens = available // step * step
    return {"tokens": tokens, "schedule_tokens": tokens, "whole_text": False}


def _train(
    job: Job[Any, TrainingOptions], model: Path, blocks: Path, settings: TrainingSettings, state: Path | None = None
) -> None:
    from pipeline.run import launch

    launch.train(job, model, blocks, settings, state)
