"""transformers' Trainer for one process or many.

Imports torch and transformers: train/trainer.py, which a plan imports too, imports this late.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from common import hub
from common.files import write_atomic
from train import distributed, lora, memory_saving, resume
from train.averaging import WeightAverage
from train.data.blocks import Blocks
from train.data.packing import IGNORED
from train.dev_text import DevText, bits_per_byte
from train.performance import Meter, Performance
from train.settings import Compute, TrainingSettings

Log = Callable[[dict[str, Any]], None]


class OneDevice(TrainingArguments):
    """transformers' arguments for processes that use one device each, whatever GPUs they see.

    transformers wraps the model of a single process in `nn.DataParallel` if the process sees several GPUs.
    """

    @property
    def n_gpu(self) -> int:
        """Return the number of GPUs of this process: 1, or 0 on a CPU."""
        return min(1, super().n_gpu)


def training_arguments(
    compute: Compute, work: Path, settings: TrainingSettings, save_every_tokens: int | None
) -> TrainingArguments:
    """Return the Trainer's arguments, which also start the process group.

    Checkpoints are saved every `save_every_tokens`; None: at the end only.

    Raises BadInput if there are not as many processes as `compute` says.
    """
    transformers.logging.set_verbosity_error()
    distributed.check_precision(compute.device, settings.precision, compute.attention)
    if compute.threads:
        torch.set_num_threads(compute.threads)
        os.environ["OMP_NUM_THREADS"] = str(compute.threads)  # without it accelerate takes all cores of a node's CPUs
    micro, accumulation = distributed.batch_sizes(
        settings.batch_tokens, settings.block_size, compute.world, compute.micro_batch
    )
    steps = settings.steps
    sharded = compute.strategy == "fsdp"
    arguments = OneDevice(
        output_dir=str(work),
        max_steps=steps if settings.decay_steps else settings.schedule_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=max(1, round(settings.warmup_ratio * settings.schedule_steps)),
        **learning_rate_schedule(settings),
        **memory_saving.optimizer_arguments(settings),
        weight_decay=settings.weight_decay,
        adam_beta2=0.95,  # with the clipping at 1.0, as Llama was trained (Touvron et al. 2023, section 2.2)
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        save_steps=max(1, (save_every_tokens or settings.tokens) // settings.batch_tokens),
        save_total_limit=2,
        logging_steps=max(1, min(10, steps // 10)),
        seed=settings.seed,
        use_cpu=compute.device == "cpu",
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",  # with a dynamic loss scale, which checkpoints contain
        activation_checkpointing=compute.gradient_checkpointing and not sharded,
        use_liger_kernel=compute.liger,
        deepspeed=distributed.deepspeed_config(compute, settings.precision, micro, accumulation),
        ddp_find_unused_parameters=False,
        fsdp=sharded or None,  # type: ignore[arg-type]  # the type is from when it was a list of words
        fsdp_config=distributed.fsdp_config(compute) if sharded else None,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=compute.device == "cuda",
    )
    distributed.start_process_group(arguments, compute)
    return arguments


def learning_rate_schedule(settings: TrainingSettings) -> dict[str, Any]:
    """Return the Trainer's arguments for the learning rate after the warm-up.

    A wsd schedule without a falling rate is the trunk of those with one: up to the first step of their decay all of
    them give the same rates, so a run may continue from the trunk's state.
    """
    if settings.schedule == "cosine":
        return {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": settings.min_lr_ratio},
        }
    shape = settings.decay_shape if settings.decay_steps else None
    decay = {"num_decay_steps": settings.decay_steps, "decay_type": shape or "linear"}
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {**decay, "min_lr_ratio": settings.min_lr_ratio},
    }


def load_model(folder: Path, settings: TrainingSettings, compute: Compute) -> Any:
    """Return the model to train, in float32: all of it, or, with LoRA, a PeftModel around it.

    LoRA may have a base in fewer bits.
    """
    hub.check_no_adapter(folder, "model")
    torch.manual_seed(settings.seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation=compute.attention,
        trust_remote_code=False,
        **memory_saving.loading(settings, compute.device),
    )
    freeze_other_modalities(model)
    if settings.lora is None:
        return model
    adapted = lora.add_adapter(model, settings.lora, other_modalities(model), settings.train_embeddings)
    memory_saving.round_base(adapted, settings)
    return adapted


def freeze_other_modalities(model: transformers.PreTrainedModel) -> None:
    """Train no weights that text does not reach, such as a vision tower's: they would get no gradients.

    DistributedDataParallel fails at the second step if a weight that it expects a gradient for gets none.
    """
    for name in other_modalities(model):
        model.get_submodule(name).requires_grad_(False)


def other_modalities(model: transformers.PreTrainedModel) -> list[str]:
    """Return the names of the largest modules whose weights text does not reach; none in a model of text only."""
    if model.config.get_text_config() is model.config:
        return []
    parts = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    text = {id(parameter) for part in parts if part is not None for parameter in part.parameters()}
    other: list[str] = []
    for name, module in model.named_modules():
        parameters = [id(parameter) for parameter in module.parameters()]
        if parameters and text.isdisjoint(parameters) and not any(name.startswith(f"{above}.") for above in other):
            other.append(name)
    return other


class Trainer(transformers.Trainer):
    """transformers' Trainer, which here saves a model's weights once and logs to `progress` alone."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        dataset: Blocks,
        progress: Progress,
        average: WeightAverage | None = None,
    ) -> None:
        config = model.config
        self.flash = "flash" in config._attn_implementation
        self.cached = {"use_cache": config.use_cache} if "use_cache" in vars(config) else {}
        super().__init__(model=model, args=arguments, train_dataset=dataset, callbacks=[progress])
        self.remove_callback(transformers.PrinterCallback)
        progress.trainer = self
        self.average = average if self.is_world_process_zero() else None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *positional: Any, **named: Any) -> Any:
        """Compute the loss of a batch, flattened to one row if FlashAttention has to tell examples apart."""
        if "position_ids" in inputs and self.flash:
            inputs = flatten_rows(inputs)
        return super().compute_loss(model, inputs, *positional, **named)

    def release(self) -> None:
        """Drop the model, its gradients and the optimizer, so that this process can use their memory.

        The references between the Trainer, its callbacks and accelerate's wrappers are cycles, and hooks of theirs
        would keep the model until the garbage collector happens to run. DeepSpeed trains in processes of their own,
        which end with the training, so nothing is dropped there.
        """
        if self.is_deepspeed_enabled:
            return
        holders = ("model", "model_wrapped", "optimizer", "lr_scheduler", "callback_handler", "average")
        vars(self).update(dict.fromkeys(holders))
        self.accelerator.free_memory()
        if self.args.optim in memory_saving.OPTIMIZERS.values():
            memory_saving.forget_optimizers()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights for the Trainer's checkpoints, and their mean so far.

        DeepSpeed's checkpoints contain the weights already: they are not gathered and written a second time.
        """
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        if self.average:
            self.average.write(Path(str(output_dir)), self.state.global_step)

    def publish(self, out: Path, base: Path, settings: TrainingSettings) -> None:
        """Write the weights of all processes, in float32, as a plain folder `out/model` that `from_pretrained` loads.

        They may be a mean (train/averaging.py). Tied tensors are written once. With LoRA, the adapter is written as
        `out/adapter`, too, and the weights that it does not train are those of the base's files, in whatever dtype they
        were while it trained.
        """
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        if self.is_deepspeed_enabled and (self.args.bf16 or self.args.fp16):
            self._take_full_precision(weights, base)
        if not self.is_world_process_zero():
            return
        folder = out / "model"
        plain = self.accelerator.unwrap_model(self.model_wrapped)
        vars(plain.config).pop("use_cache", None)  # transformers.Trainer has set it to False for the training
        vars(plain.config).update(self.cached)
        if self.average:
            weights = self.average.averaged(weights, plain)
        if settings.lora:
            lora.save_adapter(plain, weights, base, out / "adapter")
            if settings.base_dtype == "float32":
                plain, weights = plain.get_base_model(), lora.merge_adapter(weights, settings.lora)
            else:
                plain = self._read_base(base)
                weights = lora.merge_adapter(weights, settings.lora, plain.state_dict())
        tied = getattr(plain, "all_tied_weights_keys", None) or {}
        kept = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
            if name not in tied
        }
        plain.save_pretrained(folder, state_dict=kept)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["dtype"] != "float32":  # it is that of the model that was trained
            text = json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    def _take_full_precision(self, weights: dict[str, torch.Tensor] | None, base: Path) -> None:
        """Replace the 16-bit weights that DeepSpeed gathers by float32 ones: those that its optimizer updates.

        Weights that are not trained, under LoRA or of another modality, are those of the base: DeepSpeed's are rounded.

        weights: by name; None in processes other than the first. Every process calls this.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        untrained: list[str] = []
        for name, parameter in self.accelerator.unwrap_model(self.model_wrapped).named_parameters():
            if not parameter.requires_grad:
                untrained.append(name)
                continue
            full = safe_get_full_fp32_param(parameter)
            if weights is not None and full is not None and name in weights:
                weights[name] = full.detach().cpu().view(weights[name].shape)
        if weights is not None and untrained:
            base_weights = self._read_base(base).state_dict()
            weights.update({name: base_weights[lora.plain_name(name)] for name in untrained if name in weights})

    def _read_base(self, folder: Path) -> Any:
        """Return a model in float32 on the CPU, unsharded even under ZeRO-3."""
        unset_hf_deepspeed_config()
        try:
            return transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False
            )
        finally:
            if self.is_deepspeed_enabled:
                set_hf_deepspeed_config(self.args.hf_deepspeed_config)


def flatten_rows(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Join a batch of blocks (rows, block_size) to one row (1, rows * block_size) with the same loss.

    transformers derives FlashAttention's sequences from restarting position ids in batches of one row only. In a
    larger batch each row would be one sequence, and its examples would attend to each other. A row's first label is
    dropped because it would become the target of the row before; alone, the row has no position that predicts it.
    """
    labels = inputs["labels"].clone()
    labels[:, 0] = IGNORED
    return {name: tensor.reshape(1, -1) for name, tensor in {**inputs, "labels": labels}.items()}


class NothingLeft(Exception):
    """The state that a training resumes from is its end: the previous run stopped while it published."""


class Progress(transformers.TrainerCallback):
    """A callback that verifies the launch, stops at the budget or on request, marks complete checkpoints and logs."""

    def __init__(
        self,
        compute: Compute,
        settings: TrainingSettings,
        log: Path,
        on_log: Log | None,
        should_stop: Callable[[], bool] | None,
        dev: Mapping[str, DevText] | None = None,
        dev_every_tokens: int = 0,
    ) -> None:
        self.dev, self.dev_steps = dev or {}, max(1, dev_every_tokens // settings.batch_tokens)
        self.compute, self.steps, self.batch_tokens, self.log = compute, settings.steps, settings.batch_tokens, log
        self.averaged_steps = settings.averaged_steps
        self.report, self.should_stop, self.interrupted = on_log, should_stop, False
        self.started, self.first_step = time.monotonic(), 0
        self.trainer: Trainer | None = None
        self.facts: dict[str, Any] = {}
        self.meter = Meter(compute.device)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self.trainer is not None
        wrapped = self.trainer.model_wrapped
        plain = self.trainer.accelerator.unwrap_model(wrapped)
        self.facts = distributed.verify_launch(wrapped, plain, self.compute)
        if self.trainer.average:
            self.trainer.average.resume(state.global_step)
        if state.global_step >= self.steps:
            raise NothingLeft
        self.started, self.first_step = time.monotonic(), state.global_step
        if self.log.exists() and state.is_world_process_zero:
            self._truncate_log(state.global_step * self.batch_tokens)
        if self.dev and not state.global_step:
            self._measure_dev(state)
        self.meter.begin()

    def _truncate_log(self, tokens: int) -> None:
        """Drop the lines after the checkpoint that this run resumes from: they are logged again."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        before = [line for line in lines if line.endswith("\n") and json.loads(line)["tokens"] <= tokens]
        write_atomic(self.log, "".join(before))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= self.steps:
            control.should_save = control.should_log = control.should_training_stop = True
        elif self.should_stop and distributed.any_rank(self.should_stop()):
            self.interrupted = control.should_save = control.should_training_stop = True
        measures = bool(self.dev) and (state.global_step % self.dev_steps == 0 or state.global_step >= self.steps)
        averages = state.global_step in self.averaged_steps
        self.meter.end_step(saves=control.should_save or measures or averages)
        if averages:
            self._average(state)
        if measures:
            self._measure_dev(state)
        if averages or measures:
            self.meter.end_save()

    def _average(self, state: TrainerState) -> None:
        """Count the weights of this step in the mean, in the first process."""
        assert self.trainer is not None
        if self.trainer.average:
            plain = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
            self.trainer.average.update(state.global_step, plain)

    def _measure_dev(self, state: TrainerState) -> None:
        """Log bits per byte of held-out text at this step."""
        assert self.trainer is not None
        arguments = self.trainer.args
        measured = bits_per_byte(
            self.trainer.model_wrapped, self.dev, arguments.per_device_train_batch_size, arguments.device
        )
        rounded = {language: round(value, 5) for language, value in measured.items()}
        self._append(state, {"dev_bits_per_byte": rounded})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        distributed.wait_for_all()  # every process has written its part
        if state.is_world_process_zero:
            resume.mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", self.compute)
        self.meter.end_save()

    def performance(self) -> Performance | None:
        """Return the measurements, the same in all processes; None if no step was left. Every process calls this."""
        name, rate = distributed.broadcast((self.meter.device_name(), self.meter.tokens_per_second(self.batch_tokens)))
        peak = distributed.max_over_ranks(self.meter.peak_memory())
        return rate and Performance(name, self.compute.world, round(rate / self.compute.world, 3), None, peak)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        logs: dict[str, float] = more["logs"]
        if "loss" not in logs:
            return
        seconds = time.monotonic() - self.started
        record = {
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": round((state.global_step - self.first_step) * self.batch_tokens / seconds, 1),
        }
        self._append(state, record)

    def _append(self, state: TrainerState, measured: Mapping[str, Any]) -> None:
        """Write a line of the log and pass it to `on_log`, in the first process."""
        if not state.is_world_process_zero:
            return
        done = {"tokens": state.global_step * self.batch_tokens, "of_tokens": self.steps * self.batch_tokens}
        record = {**done, **measured}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.report:
            self.report(record)
