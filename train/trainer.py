"""Blocks -> a trained checkpoint. One trainer for CT, SFT and the base model, on one process or many: the kind of blocks is the only difference.

A run is one stretch of a trajectory: one schedule over `schedule_tokens`, one order of blocks. It starts from the model or from the state at a smaller
budget and ends at `tokens`. In one process the weights are the same bit for bit wherever it was started or resumed from; docs/training.md has the rest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import BadInput, Interrupted
from train import parallel
from train.parallel import Compute

if TYPE_CHECKING:
    import torch

COMPLETE = "complete"  # written into a checkpoint folder last, with the launch that it was saved by: one without it was cut off


def train(
    model_dir: Path,
    blocks_dir: Path,
    settings: dict[str, Any],
    out: Path,
    *,
    work: Path,
    resume_state: Path | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    on_log: Callable[[dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Trains up to `tokens` and leaves `out/model`, `out/state`, `out/log.jsonl` and, with LoRA, `out/adapter`. Returns what the launch was found to be, see `engine.launch_facts`.

    Every process of a launch calls this with the same arguments; `compute` says how many there are, and it is refused where that is not so.
    Settings: tokens, schedule_tokens, batch_tokens, block_size, learning_rate, min_lr_ratio (of the peak), warmup_ratio (of the schedule), weight_decay,
    save_every_tokens, seed; lora (rank, alpha, dropout, targets), where not every weight is trained. `work` keeps checkpoints until the run is published; a later call with the same `work` goes on from the last whole one.
    `on_log` gets {"tokens", "of_tokens", "loss", "learning_rate", "tokens_per_second"} after every logged step, in the first process only.
    `should_stop` is asked after every step: once it is true in any process, all save and raise Interrupted.
    """
    parallel.sizes(settings["batch_tokens"], settings["block_size"], compute.world, compute.micro_batch)
    dataset = Blocks(blocks_dir)
    steps = settings["tokens"] // settings["batch_tokens"]  # a budget is never exceeded
    horizon = max(steps, settings["schedule_tokens"] // settings["batch_tokens"])
    if not steps:
        raise BadInput(
            f"tokens={settings['tokens']:,} is less than one step of batch_tokens={settings['batch_tokens']:,}"
        )
    if steps * settings["batch_tokens"] > len(dataset) * settings["block_size"]:
        raise BadInput(
            f"tokens={settings['tokens']:,} is more than the corpus holds: {len(dataset) * settings['block_size']:,} tokens in {blocks_dir.name}"
        )

    import torch
    import transformers

    from train import lora
    from train import transformers_trainer as engine

    transformers.logging.set_verbosity_error()
    if compute.threads:
        torch.set_num_threads(compute.threads)
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    arguments = engine.arguments(
        compute, work, settings, steps, horizon
    )  # before the model is loaded: ZeRO-3 loads it in parts
    start = engine.from_first(starting_point(work, resume_state) if arguments.process_index == 0 else None)
    if start:
        check_state(start, compute)
    torch.manual_seed(settings["seed"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation=compute.attention
    )
    if settings.get("lora"):
        model = lora.adapted(model, settings["lora"])
    progress = engine.Progress(compute, steps, settings["batch_tokens"], work / "log.jsonl", on_log, should_stop)
    trainer = engine.Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[progress])
    progress.trainer = trainer
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    done = trainer.state.global_step
    if progress.interrupted:
        tokens = settings["batch_tokens"]
        raise Interrupted(
            f"stopped after {done * tokens:,} of {steps * tokens:,} tokens; what is done is saved, and the next run goes on from there"
        )
    if done != steps:
        raise RuntimeError(f"training stopped at step {done} of {steps}")
    trainer.publish(
        out, torch.bfloat16 if compute.precision == "bf16" else torch.float32, model_dir, settings.get("lora")
    )
    if arguments.process_index == 0:
        transformers.AutoTokenizer.from_pretrained(model_dir).save_pretrained(out / "model")
        shutil.copytree(work / f"checkpoint-{steps}", out / "state", dirs_exist_ok=True, copy_function=link)
        shutil.copy(work / "log.jsonl", out / "log.jsonl")
    return progress.facts


def link(source: str, target: str) -> None:
    """A second name for a file that is not written again, or a copy where the file system has no such thing: a state may have 80 GB."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def starting_point(work: Path, resume_state: Path | None) -> Path | None:
    """The last whole checkpoint of this run, or what it starts from. Checkpoints that a crash cut off are removed."""
    whole = []
    for folder in sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if (folder / COMPLETE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return whole[-1] if whole else resume_state


def check_state(state: Path, compute: Compute) -> None:
    """Refuses a state that this launch cannot continue from. One process and DDP share a format, whatever the number of processes; FSDP's is
    resharded when it is read; DeepSpeed's is for the number of processes that wrote it."""
    text = (state / COMPLETE).read_text(
        encoding="utf-8"
    ) or '{"strategy": "none", "world_size": 1}'  # an empty one is from before there were several
    saved = json.loads(text)
    formats = {"none": "torch", "ddp": "torch"}
    same = formats.get(saved["strategy"], saved["strategy"]) == formats.get(compute.strategy, compute.strategy)
    if not same or (compute.strategy in parallel.ZERO_STAGES and saved["world_size"] != compute.world):
        raise BadInput(
            f"compute.strategy={compute.strategy} on {compute.world} processes cannot continue from {state}, which was saved by {saved['strategy']} on"
            f" {saved['world_size']}; train as before, or remove that folder's stage from the store"
        )


class Blocks:
    """A map-style dataset over the memory-mapped blocks of a folder; a row is one block, its labels, and its positions where there are any."""

    def __init__(self, folder: Path) -> None:
        self.columns = {"input_ids": np.load(folder / "blocks.npy", mmap_mode="r")}
        for name, file in (("labels", "labels.npy"), ("position_ids", "positions.npy")):
            if (folder / file).exists():
                self.columns[name] = np.load(folder / file, mmap_mode="r")
        self.columns.setdefault("labels", self.columns["input_ids"])

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        import torch

        return {name: torch.from_numpy(column[index].astype(np.int64)) for name, column in self.columns.items()}
