"""Blocks -> a trained checkpoint: one trainer for CT, SFT and the base model, on one process or many.

Only the kind of blocks differs. A run is one part of a trajectory, with one schedule over `schedule_tokens` and one
order of blocks. It starts from the model or from the state at a smaller budget, and ends at `tokens`. In one process
the weights are the same bit for bit wherever it started or resumed; see docs/how-to/train-on-several-gpus.md.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput, Interrupted
from train import averaging, dev_text, distributed, memory_saving, resume
from train.data.blocks import Blocks
from train.data.chat_template import TrainedTemplate, add_stop_token
from train.dev_text import DevEvaluation
from train.settings import Compute, TrainingSettings

if TYPE_CHECKING:
    from train.hf_trainer import Trainer


def train(
    model_dir: Path,
    blocks_dir: Path,
    settings: TrainingSettings,
    out: Path,
    *,
    work: Path,
    save_every_tokens: int | None = None,
    resume_state: Path | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    on_log: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    watched: DevEvaluation | None = None,
    calibration_dir: Path | None = None,
) -> dict[str, Any]:
    """Train up to `tokens`; write `out/model`, `out/state`, `out/log.jsonl` and, with LoRA, `out/adapter`.

    Every process of a launch calls this with the same arguments; `compute` has their number.

    work: keeps a checkpoint every `save_every_tokens` (None: at the end only) until the run is published; a later call
    with the same folder resumes from the last complete one.
    resume_state: the `state` of a smaller budget to start from; None: the model.
    on_log: gets {"tokens", "of_tokens", "loss", "learning_rate", "tokens_per_second"} after every logged step, in the
    first process only.
    watched: held-out text whose bits per byte are logged as {"tokens", "of_tokens", "dev_bits_per_byte"}: those of the
    current weights, also where the published ones are a mean.
    calibration_dir: blocks of the text that decides which columns of the model are frozen, if the settings freeze any.
    should_stop: called after every step; once it is true in any process, all save and raise Interrupted.

    Returns the facts of `distributed.verify_launch`, and as `performance` the fields of
    `train.performance.Performance`, or None. Raises BadInput for settings, a budget, batch or state that cannot work,
    and if the number of processes is not that of `compute`.
    """
    distributed.batch_sizes(settings.batch_tokens, settings.block_size, compute.world, compute.micro_batch)
    memory_saving.check(settings, compute)
    averaging.check(settings, compute)
    dataset = Blocks(blocks_dir)
    check_budget(settings, len(dataset), blocks_dir.name)

    from train import hf_trainer as engine

    gc.collect()
    gc.freeze()  # imported modules: the collections of `release` would scan half a million objects of theirs
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    # before the model is loaded: ZeRO-3 loads it in parts
    arguments = engine.training_arguments(compute, work, settings, save_every_tokens)
    start = distributed.broadcast(resume.starting_point(work, resume_state) if arguments.process_index == 0 else None)
    if start:
        resume.check_state(start, compute)
    dev = dev_text.read_dev_text(watched, model_dir, settings.block_size) if watched else {}
    every = watched.every_tokens if watched else 0
    progress = engine.Progress(compute, settings, work / "log.jsonl", on_log, should_stop, dev, every)
    average = averaging.WeightAverage(settings.averaged_steps, start) if settings.averaged_steps else None
    # nothing else here may keep the model: `release` frees it
    trainer = engine.Trainer(engine.load_model(model_dir, settings, compute), arguments, dataset, progress, average)
    frozen = freeze_columns(trainer, settings, calibration_dir)
    try:
        with suppress(engine.NothingLeft):
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        check_end(trainer.state.global_step, settings, progress.interrupted)
        performance = progress.performance()
        publish(trainer, model_dir, blocks_dir, settings, out, work)
    finally:
        trainer.release()
    return {**progress.facts, **frozen, "performance": asdict(performance) if performance else None}


def freeze_columns(trainer: Trainer, settings: TrainingSettings, calibration_dir: Path | None) -> dict[str, int]:
    """Freeze the columns that the settings say, and return how many weights these are; empty if they freeze none."""
    if settings.frozen_columns is None:
        return {}
    from train.column_freezing import ColumnFreezing, important_columns

    assert calibration_dir is not None
    model: Any = trainer.model
    columns = important_columns(model, Blocks(calibration_dir), settings.frozen_columns)
    freezing = ColumnFreezing(model, columns)
    trainer.add_callback(freezing)
    return freezing.facts


def check_end(done: int, settings: TrainingSettings, interrupted: bool) -> None:
    """Raise Interrupted if a training was asked to stop early, and RuntimeError if it stopped early by itself."""
    if interrupted:
        tokens = settings.batch_tokens
        raise Interrupted(
            f"stopped after {done * tokens:,} of {settings.steps * tokens:,} tokens;"
            " the next run resumes from this checkpoint"
        )
    if done != settings.steps:
        raise RuntimeError(f"training stopped at step {done} of {settings.steps}")


def check_budget(settings: TrainingSettings, blocks: int, where: str) -> None:
    """Reject a budget of less than a step, or of more than the blocks of the folder `where`."""
    if not settings.steps:
        raise BadInput(
            f"tokens={settings.tokens:,}: must be at least one step, batch_tokens={settings.batch_tokens:,}."
        )
    if settings.steps * settings.batch_tokens > blocks * settings.block_size:
        raise BadInput(
            f"tokens={settings.tokens:,}: must be at most the corpus,"
            f" {blocks * settings.block_size:,} tokens in {where}."
        )


def publish(
    trainer: Trainer, model_dir: Path, blocks_dir: Path, settings: TrainingSettings, out: Path, work: Path
) -> None:
    """Write the results of a finished training. Every process calls this, and the first one writes.

    The chat template of the training goes into the tokenizer, and the token that ends its answers into the generation
    config. Weights are float32 whatever the precision of the passes: a merge takes differences of checkpoints, and in
    16 bits the differences of a short training are mostly rounding.
    """
    import transformers

    trainer.publish(out, model_dir, settings)
    if trainer.is_world_process_zero():
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
        if trained := TrainedTemplate.read(blocks_dir):
            tokenizer.chat_template = trained.template
            add_stop_token(out / "model", tokenizer.get_vocab()[trained.stop_token])
        tokenizer.save_pretrained(out / "model")
        resume.publish_state(work / f"checkpoint-{settings.steps}", out / "state")
        shutil.copy(work / "log.jsonl", out / "log.jsonl")
