"""Processes, engine, precision and batch sizes of a training.

The optimisation is the same for all of them.

A step always uses the same `batch_tokens / block_size` blocks, in the same order: each of P processes gets a P-th of
them, in as many forward passes as memory requires. Importing this module imports no torch.
"""

from __future__ import annotations

from typing import Any

from common.errors import BadInput
from train.settings import Compute

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
    share, remainder = divmod(blocks, world)
    if remainder:
        nearest = max(1, round(blocks / world)) * world * block_size
        raise BadInput(
            f"batch_tokens={batch_tokens}: its {blocks} blocks of {block_size} tokens cannot be divided"
            f" by {world} processes (compute.processes x compute.nodes)."
            f" Set a number of processes that divides {blocks}, or batch_tokens={nearest}."
        )
    micro = next(size for size in range(min(micro_batch or share, share), 0, -1) if share % size == 0)
    return micro, share // micro


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
