"""Processes, engine, precision and batch sizes of a training, none of which changes the optimisation.

A step always uses the same `batch_tokens / block_size` blocks, in the same order: each of P processes gets a P-th of
them, in as many forward passes as memory requires. Importing this module imports no torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from train.settings import Compute

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

ZERO_STAGES = {"zero2": 2, "zero3": 3, "zero3_offload": 3}


def contradiction(device: str, precision: str, attention: str | None) -> str | None:
    """Describe, beginning with the key, what a device or kernel cannot compute in this precision; None: nothing."""
    if precision == "fp16" and device == "cpu":
        return "precision=fp16: needs a GPU, got device=cpu. Set compute.precision=fp32."
    if precision == "fp32" and attention == "flash_attention_2":
        return (
            "attention=flash_attention_2: computes in 16 bits only, got precision=fp32."
            " Set compute.precision=bf16, or compute.attention=null."
        )
    return None


def check_precision(device: str, precision: str, attention: str | None) -> None:
    """Raise BadInput if the device, its kernels or this machine's GPU cannot compute in a precision.

    PyTorch would emulate it there, many times slower than fp16. Imports torch only for bf16 on a GPU.
    """
    if wrong := contradiction(device, precision, attention):
        raise BadInput(f"compute.{wrong}")
    if device != "cuda" or precision != "bf16":
        return
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise BadInput(
            f"compute.precision: {torch.cuda.get_device_name()} does not support bf16, got bf16."
            " Set compute.precision=fp16."
        )


def batch_sizes(batch_tokens: int, block_size: int, world: int, micro_batch: int | None) -> tuple[int, int]:
    """Return (blocks in a forward pass of a process, forward passes per step) so that `world` processes use
    `batch_tokens`.

    The first is the largest divisor of a process's part of the batch that `micro_batch` allows. Raises BadInput if the
    batch cannot be divided.
    """
    blocks, remainder = divmod(batch_tokens, block_size)
    if remainder or not blocks:
        raise BadInput(f"batch_tokens={batch_tokens}: must be a multiple of block_size={block_size}.")
    of_process, remainder = divmod(blocks, world)
    if remainder:
        nearest = max(1, round(blocks / world)) * world * block_size
        raise BadInput(
            f"batch_tokens={batch_tokens}: its {blocks} blocks of {block_size} tokens cannot be divided"
            f" by {world} processes (compute.processes x compute.nodes)."
            f" Set a number of processes that divides {blocks}, or batch_tokens={nearest}."
        )
    micro = next(size for size in range(min(micro_batch or of_process, of_process), 0, -1) if of_process % size == 0)
    return micro, of_process // micro


def fsdp_config(compute: Compute) -> dict[str, Any]:
    """Return accelerate's settings for FSDP2: each layer's weights are gathered when it runs and freed again.

    States are saved in shards, for any world size.
    """
    return {
        "version": 2,
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
        "activation_checkpointing": compute.gradient_checkpointing,
    }


def deepspeed_config(compute: Compute, precision: str, micro: int, accumulation: int) -> dict[str, Any] | None:
    """Return DeepSpeed's settings; None for a strategy of torch's own.

    The optimizer, its schedule and the clipping stay those of the one trainer.
    """
    if compute.strategy not in ZERO_STAGES:
        return None
    stage = ZERO_STAGES[compute.strategy]
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": compute.device == "cuda", "contiguous_gradients": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = (
            True  # the checkpoint is one plain folder, in the precision it is trained in
        )
    if compute.strategy == "zero3_offload":
        pinned = {"device": "cpu", "pin_memory": compute.device == "cuda"}
        zero |= {"offload_optimizer": pinned, "offload_param": pinned}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},  # its loss scale is dynamic, DeepSpeed's default
        "data_types": {
            "grad_accum_dtype": "fp32"
        },  # as DDP has it; otherwise the gradients of many passes would be summed in bfloat16
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation * compute.world,
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }


# --- Within the processes of a launch; these functions import torch ---


def start_process_group(arguments: TrainingArguments, compute: Compute) -> None:
    """Check the processes of this launch, and start the group that DeepSpeed, or FSDP on a CPU, needs."""
    if arguments.world_size != compute.world:
        raise BadInput(
            f"compute: needs {compute.world} processes, got {arguments.world_size}."
            " Let the pipeline start them, or run `torchrun --nproc_per_node=... -m train JOB.json`."
        )
    if compute.strategy in ZERO_STAGES:
        import deepspeed

        beside_python = Path(sys.executable).parent  # this folder has ninja, which builds DeepSpeed's extensions
        os.environ["PATH"] = f"{beside_python}{os.pathsep}{os.environ.get('PATH', '')}"
        deepspeed.init_distributed()  # takes the group over; otherwise ZeRO-3 would load the model as for one process
    if compute.strategy == "fsdp" and compute.device == "cpu":
        _shard_on_cpu()


def _shard_on_cpu() -> None:
    """Make accelerate apply FSDP2 to CPU processes; a private interface, see docs/development/private-interfaces.md.

    accelerate does so for the kinds of process groups that it lists. CPU's is not one: it would silently be DDP.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def verify_launch(wrapped: Any, plain: Any, compute: Compute) -> dict[str, Any]:
    """Return world size, wrapper class and ZeRO stage of this process. wrapped: the model as trained; plain: unwrapped.

    Raises RuntimeError if they differ from `compute`: launchers fall back silently.
    """
    name = type(plain).__name__.removeprefix("FSDP")
    wrappers = {"none": name, "ddp": "DistributedDataParallel", "fsdp": f"FSDP{name}"}
    fraction = local_fraction(wrapped)
    facts: dict[str, Any] = {
        "strategy": compute.strategy,
        "world_size": world_size(),
        "wrapper": type(wrapped).__name__,
        "zero_stage": wrapped.zero_optimization_stage() if type(wrapped).__name__ == "DeepSpeedEngine" else 0,
        "held_parameters": round(fraction, 3),  # fraction of the weights in this process between two passes
    }
    sharded = compute.world > 1 and compute.strategy in ("zero3", "zero3_offload", "fsdp")
    expected = {
        "world_size": compute.world,
        "wrapper": wrappers.get(compute.strategy, "DeepSpeedEngine"),
        "zero_stage": ZERO_STAGES.get(compute.strategy, 0),
    }
    if any(facts[name] != value for name, value in expected.items()) or (fraction < 0.999) != sharded:
        raise RuntimeError(
            f"compute.strategy={compute.strategy}: expected {expected}, sharded weights: {sharded};"
            f" this launch has {facts}"
        )
    return facts


def local_fraction(model: torch.nn.Module) -> float:
    """Return the fraction of the parameters that are in this process: 1 if every process has all of them."""
    from torch.distributed.tensor import DTensor

    present = total = 0
    for parameter in model.parameters():
        total += getattr(parameter, "ds_numel", parameter.numel())
        partition = getattr(parameter, "ds_tensor", None)
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        present += local.numel() if partition is None else partition.numel()
    return present / total


def world_size() -> int:
    """Return the number of processes of this launch."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


def any_rank(condition: bool) -> bool:
    """Return whether the condition holds in any process: all get the same answer at the same step."""
    return bool(max_over_ranks(int(condition)))


def max_over_ranks(value: int) -> int:
    """Return the largest of all processes' values, in all of them."""
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        return value
    device = "cpu" if distributed.get_backend() == "gloo" else "cuda"
    values = torch.tensor([value], dtype=torch.int64, device=device)
    distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
    return int(values.item())


def broadcast(value: Any) -> Any:
    """Return the first process's value, in all of them: their views of a shared file system may differ."""
    from torch import distributed

    if not distributed.is_initialized():
        return value
    holder = [value]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


def wait_for_all() -> None:
    """Wait until every process has come here."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
