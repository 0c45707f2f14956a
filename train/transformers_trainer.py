"""transformers' Trainer on one process or many, and what keeps it honest.

Imports torch and transformers: train/trainer.py, which a plan imports too, imports this late.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from common import hub
from common.errors import BadInput
from common.files import write_whole
from train import lora, parallel, resume
from train.block_dataset import Blocks
from train.parallel import Compute
from train.stage_settings import LoraSettings, TrainingSettings

Log = Callable[[dict[str, float]], None]


def arguments(
    compute: Compute, work: Path, settings: TrainingSettings, save_every_tokens: int | None
) -> TrainingArguments:
    """The Trainer's arguments, which also start the process group.

    Checkpoints are saved every `save_every_tokens`; None: at the end only.

    Raises BadInput where there are not as many processes as `compute` says.
    """
    transformers.logging.set_verbosity_error()
    if compute.threads:
        torch.set_num_threads(compute.threads)
        os.environ["OMP_NUM_THREADS"] = str(compute.threads)  # without it accelerate takes all cores of a node's CPUs
    micro, accumulation = parallel.sizes(settings.batch_tokens, settings.block_size, compute.world, compute.micro_batch)
    steps, schedule_steps = settings.steps, settings.schedule_steps
    sharded = compute.strategy == "fsdp"
    made = TrainingArguments(
        output_dir=str(work),
        max_steps=schedule_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.min_lr_ratio},
        warmup_steps=max(1, round(settings.warmup_ratio * schedule_steps)),
        weight_decay=settings.weight_decay,
        adam_beta2=0.95,  # with the clipping at 1.0, as Llama was trained (Touvron et al. 2023, section 2.2)
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        save_steps=max(1, (save_every_tokens or settings.tokens) // settings.batch_tokens),
        save_total_limit=2,
        logging_steps=max(1, min(10, steps // 10)),
        seed=settings.seed,
        use_cpu=compute.device == "cpu",
        bf16=compute.precision == "bf16",
        activation_checkpointing=compute.gradient_checkpointing and not sharded,
        use_liger_kernel=compute.liger,
        deepspeed=parallel.deepspeed_config(compute, micro, accumulation),
        ddp_find_unused_parameters=False,
        fsdp=sharded or None,  # type: ignore[arg-type]  # the type is from when it was a list of words
        fsdp_config=parallel.fsdp_config(compute) if sharded else None,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=compute.device == "cuda",
    )
    start_process_group(made, compute)
    return made


def start_process_group(made: TrainingArguments, compute: Compute) -> None:
    """Checks the processes of this launch, and makes their group one that DeepSpeed, or FSDP on a CPU, takes."""
    if made.world_size != compute.world:
        raise BadInput(
            f"compute: {compute.world} processes wanted, but this launch has {made.world_size};"
            " the pipeline starts them, or say torchrun --nproc_per_node=... -m train JOB.json"
        )
    if compute.strategy in parallel.ZERO_STAGES:
        import deepspeed

        beside_python = Path(sys.executable).parent  # here lies ninja, which builds DeepSpeed's extensions
        os.environ["PATH"] = f"{beside_python}{os.pathsep}{os.environ.get('PATH', '')}"
        deepspeed.init_distributed()  # takes the group over; otherwise ZeRO-3 would load the model as for one process
    if compute.strategy == "fsdp" and compute.device == "cpu":
        _shard_on_cpu()


def _shard_on_cpu() -> None:
    """Makes accelerate apply FSDP2 to CPU processes; a private interface, see docs/development/private-interfaces.md.

    It does so for the kinds of process groups that it lists, and CPU's is not one: it would be DDP, unsaid.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def load_model(folder: Path, settings: TrainingSettings, compute: Compute) -> Any:
    """The model to train, in float32: all of it, or, with LoRA, a PeftModel around it."""
    hub.check_no_adapter(folder, "model")
    torch.manual_seed(settings.seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=compute.attention, trust_remote_code=False
    )
    return lora.adapted(model, settings.lora) if settings.lora else model


class Trainer(transformers.Trainer):
    """transformers' Trainer, which here saves a model's weights once and says what it does to `progress` only."""

    def __init__(self, model: Any, arguments: TrainingArguments, dataset: Blocks, progress: Progress) -> None:
        super().__init__(model=model, args=arguments, train_dataset=dataset, callbacks=[progress])
        self.remove_callback(transformers.PrinterCallback)
        progress.trainer = self

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """For its checkpoints.

        DeepSpeed's hold the weights already: they are not gathered and written a second time.
        """
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)

    def publish(self, out: Path, dtype: torch.dtype, base: Path, adaptation: LoraSettings | None) -> None:
        """The weights of all processes as a plain folder `out/model` that `from_pretrained` loads.

        Config, safetensors, tied tensors once.

        LoRA: its adapter, too, as `out/adapter`.
        """
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.is_world_process_zero():
            return
        folder = out / "model"
        plain = self.accelerator.unwrap_model(self.model_wrapped)
        if adaptation:
            lora.save_adapter(plain, weights, base, out / "adapter")
            plain, weights = plain.get_base_model(), lora.merged(weights, adaptation)
        tied = getattr(plain, "all_tied_weights_keys", None) or {}
        kept = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
            if name not in tied
        }
        plain.save_pretrained(folder, state_dict=kept)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        written = str(dtype).removeprefix("torch.")
        if config["dtype"] != written:  # it is that of the model that was trained
            text = json.dumps({**config, "dtype": written}, indent=2, sort_keys=True)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def launch_facts(trainer: Trainer, compute: Compute) -> dict[str, Any]:
    """World size, wrapper class and ZeRO stage as they are in this process.

    Raises RuntimeError where `compute` says otherwise: launchers fall back silently.
    """
    wrapped: Any = trainer.model_wrapped
    plain = type(trainer.accelerator.unwrap_model(wrapped)).__name__.removeprefix("FSDP")
    wrappers = {"none": plain, "ddp": "DistributedDataParallel", "fsdp": f"FSDP{plain}"}
    share = local_share(wrapped)
    facts: dict[str, Any] = {
        "strategy": compute.strategy,
        "world_size": distributed.get_world_size() if distributed.is_initialized() else 1,
        "wrapper": type(wrapped).__name__,
        "zero_stage": wrapped.zero_optimization_stage() if type(wrapped).__name__ == "DeepSpeedEngine" else 0,
        "held_parameters": round(share, 3),  # share of the weights that this process holds between two passes
    }
    sharded = compute.world > 1 and compute.strategy in ("zero3", "zero3_offload", "fsdp")
    expected = {
        "world_size": compute.world,
        "wrapper": wrappers.get(compute.strategy, "DeepSpeedEngine"),
        "zero_stage": parallel.ZERO_STAGES.get(compute.strategy, 0),
    }
    if any(facts[name] != value for name, value in expected.items()) or (share < 0.999) != sharded:
        raise RuntimeError(
            f"compute.strategy={compute.strategy}: expected {expected}, sharded weights: {sharded};"
            f" this launch has {facts}"
        )
    return facts


def local_share(model: torch.nn.Module) -> float:
    """Share of the parameters that lie in this process: 1 where every process has all of them."""
    present = total = 0
    for parameter in model.parameters():
        total += getattr(parameter, "ds_numel", parameter.numel())
        partition = getattr(parameter, "ds_tensor", None)
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        present += local.numel() if partition is None else partition.numel()
    return present / total


def agreed(wish: bool) -> bool:
    """Whether any process wishes it: all get the same answer at the same step."""
    if not distributed.is_initialized():
        return wish
    device = "cpu" if distributed.get_backend() == "gloo" else "cuda"
    flag = torch.tensor([wish], dtype=torch.int32, device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def from_first(value: Any) -> Any:
    """The first process's value, in all of them: what each sees of a shared file system may differ."""
    if not distributed.is_initialized():
        return value
    holder = [value]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


class Progress(transformers.TrainerCallback):
    """Checks the launch, stops at the budget or when told to, marks whole checkpoints, and passes on what is logged."""

    def __init__(
        self,
        compute: Compute,
        settings: TrainingSettings,
        log: Path,
        on_log: Log | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.compute, self.steps, self.batch_tokens, self.log = compute, settings.steps, settings.batch_tokens, log
        self.report, self.should_stop, self.interrupted = on_log, should_stop, False
        self.started, self.first_step = time.monotonic(), 0
        self.trainer: Trainer | None = None
        self.facts: dict[str, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self.trainer is not None
        self.facts = launch_facts(self.trainer, self.compute)
        self.started, self.first_step = time.monotonic(), state.global_step
        if self.log.exists() and state.is_world_process_zero:
            self._cut_log(state.global_step * self.batch_tokens)

    def _cut_log(self, tokens: int) -> None:
        """Drops what was logged after the checkpoint that this run goes on from: it is logged again."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        before = [line for line in lines if line.endswith("\n") and json.loads(line)["tokens"] <= tokens]
        write_whole(self.log, "".join(before))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= self.steps:
            control.should_save = control.should_log = control.should_training_stop = True
        elif self.should_stop and agreed(self.should_stop()):
            self.interrupted = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if distributed.is_initialized():
            distributed.barrier()  # every process has written its part
        if state.is_world_process_zero:
            resume.mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", self.compute)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        logs: dict[str, float] = more["logs"]
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
