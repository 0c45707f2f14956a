"""Blocks -> a trained checkpoint. One trainer for CT, SFT and the base model: the kind of blocks is the only difference.

A run is one stretch of a trajectory: one schedule over `schedule_tokens`, one order of blocks. It starts from the model or from the state at a smaller
budget and ends at `tokens`, with the same weights bit for bit wherever it was started or resumed from.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train import parallel
from train.errors import BadInput, Interrupted
from train.parallel import Compute

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

COMPLETE = "complete"  # written into a checkpoint folder last: one without it was cut off


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
    """Trains up to `tokens` and leaves `out/model`, `out/state` and `out/log.jsonl`. Returns what the launch was found to be.

    Every process of a launch calls this with the same arguments; `compute` says how many there are, and it is refused where that is not so.
    Settings: tokens, schedule_tokens, batch_tokens, block_size, learning_rate, min_lr_ratio (of the peak), warmup_ratio (of the schedule), weight_decay,
    save_every_tokens, seed. `work` keeps checkpoints until the run is published; a later call with the same `work` goes on from the last whole one.
    `on_log` gets {"tokens", "of_tokens", "loss", "learning_rate", "tokens_per_second"} after every logged step, in the first process only.
    `should_stop` is asked after every step: once it is true in any process, all save and raise Interrupted.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    if compute.threads:
        torch.set_num_threads(compute.threads)
    micro, accumulation = parallel.sizes(settings["batch_tokens"], settings["block_size"], compute.world, compute.micro_batch)
    batch = settings["batch_tokens"] // settings["block_size"]
    dataset = Blocks(blocks_dir)
    steps = settings["tokens"] // settings["batch_tokens"]  # a budget is never exceeded
    horizon = max(steps, settings["schedule_tokens"] // settings["batch_tokens"])
    if not steps:
        raise BadInput(f"tokens={settings['tokens']:,} is less than one step of batch_tokens={settings['batch_tokens']:,}")
    if steps * batch > len(dataset):
        raise BadInput(f"tokens={settings['tokens']:,} is more than the corpus holds: {len(dataset) * settings['block_size']:,} tokens in {blocks_dir.name}")
    checkpoints = usable_checkpoints(work)
    start = checkpoints[-1] if checkpoints else resume_state
    save_steps = max(1, settings["save_every_tokens"] // settings["batch_tokens"])
    arguments = transformers.TrainingArguments(
        output_dir=str(work),
        max_steps=horizon,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings["min_lr_ratio"]},
        warmup_steps=max(1, round(settings["warmup_ratio"] * horizon)),
        weight_decay=settings["weight_decay"],
        adam_beta2=0.95,  # with the clipping at 1.0, as Llama was trained (Touvron et al. 2023, section 2.2)
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        save_steps=save_steps,
        save_total_limit=2,
        logging_steps=max(1, min(10, steps // 10)),
        seed=settings["seed"],
        use_cpu=compute.device == "cpu",
        bf16=compute.precision == "bf16",
        gradient_checkpointing=compute.gradient_checkpointing,
        use_liger_kernel=compute.liger,
        ddp_find_unused_parameters=False,
        deepspeed=parallel.deepspeed_config(compute, micro, accumulation),  # before the model is loaded: ZeRO-3 loads it in parts
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    torch.manual_seed(settings["seed"])
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation=compute.attention)
    progress = _progress_callback(transformers.TrainerCallback)(steps, settings, work / "log.jsonl", on_log, should_stop)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[progress])
    trainer.remove_callback(transformers.PrinterCallback)
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    if progress.interrupted:
        done = trainer.state.global_step * settings["batch_tokens"]
        raise Interrupted(f"stopped after {done:,} of {steps * settings['batch_tokens']:,} tokens; saved, and the next run goes on from there")
    if trainer.state.global_step != steps:
        raise RuntimeError(f"training stopped at step {trainer.state.global_step} of {steps}")
    facts = launch_facts(trainer, compute)
    trainer.save_model(str(out / "model"))
    if trainer.is_world_process_zero():
        transformers.AutoTokenizer.from_pretrained(model_dir).save_pretrained(out / "model")
        shutil.copytree(work / f"checkpoint-{steps}", out / "state", dirs_exist_ok=True)
        shutil.copy(work / "log.jsonl", out / "log.jsonl")
    return facts


def launch_facts(trainer: Any, compute: Compute) -> dict[str, Any]:
    """World size, wrapper class and ZeRO stage, as they are in this process. Raises RuntimeError where they are not what `compute` says."""
    wrapped = trainer.model_wrapped
    zero = getattr(wrapped, "zero_optimization_stage", lambda: 0)()
    return {
        "strategy": compute.strategy,
        "world_size": trainer.args.world_size,
        "wrapper": type(wrapped).__name__,
        "zero_stage": zero,
    }


def usable_checkpoints(work: Path) -> list[Path]:
    """The whole checkpoints in a work folder, oldest first; those that a crash cut off are removed."""
    whole = []
    for folder in sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if (folder / COMPLETE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return whole


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


def agreed(wish: bool) -> bool:
    """Whether any process wishes it: all get the same answer at the same step."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return wish
    device = "cpu" if distributed.get_backend() == "gloo" else "cuda"
    flag = torch.tensor([wish], dtype=torch.int32, device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def _progress_callback(base: type) -> type:
    """Defines the callback on transformers' base class, which is not imported before it is needed."""

    class Progress(base):  # type: ignore[misc, valid-type]
        """Stops at the budget, marks whole checkpoints, and passes on what the trainer logs."""

        def __init__(self, steps: int, settings: dict[str, Any], log: Path, on_log: Callable[[dict[str, float]], None] | None, should_stop: Callable[[], bool] | None) -> None:
            self.steps, self.batch_tokens, self.log, self.report = steps, settings["batch_tokens"], log, on_log
            self.started, self.first_step = time.monotonic(), 0
            self.should_stop, self.interrupted = should_stop, False

        def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            self.started, self.first_step = time.monotonic(), state.global_step
            if self.log.exists() and state.is_world_process_zero:  # what was logged after the checkpoint that this run goes on from is logged again
                lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
                before = [line for line in lines if line.endswith("\n") and json.loads(line)["tokens"] <= state.global_step * self.batch_tokens]
                self.log.write_text("".join(before), encoding="utf-8")

        def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            if state.global_step >= self.steps:
                control.should_save = control.should_log = control.should_training_stop = True
            elif self.should_stop and agreed(self.should_stop()):
                self.interrupted = control.should_save = control.should_training_stop = True

        def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

        def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs or not state.is_world_process_zero:
                return
            seconds = time.monotonic() - self.started
            record = {
                "tokens": state.global_step * self.batch_tokens,
                "of_tokens": self.steps * self.batch_tokens,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "tokens_per_second": round((state.global_step - self.first_step) * self.batch_tokens / seconds, 1),
            }
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            if self.report:
                self.report(record)

    return Progress
