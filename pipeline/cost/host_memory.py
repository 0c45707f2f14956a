"""Bytes of a node's main memory."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import Config, ModelShape
from pipeline.cost.memory import Memory, width
from pipeline.cost.model_shape import model_shape

PROCESS = 10**9  # bytes besides tensors: Python, torch, transformers, compiled loops (0.7 + 0.2 GB on a CPU)


def training(shape: ModelShape, config: Config, memory: Memory) -> float:
    """Return bytes of a node at the peak of a training on GPUs.

    train/transformers_trainer.py loads the model in 32 bits in the main memory of every process, which brings it to
    its GPU then. ZeRO-3 hands out the tensors of one file as it reads them, so a node holds one copy. In the end the
    first process gathers the weights in 32 bits (Trainer.publish). Under DeepSpeed those that LoRA leaves untrained
    come in the precision of the passes, and it reads the base's beside them. At the same time states may be offloaded.
    """
    compute = config.compute
    whole = 4 * shape.parameters
    sharded_as_read = compute.strategy in ("zero3", "zero3_offload")
    loading = whole * (1 if sharded_as_read else compute.processes)
    rounded = compute.strategy.startswith("zero") and compute.precision != "fp32" and config.train.lora
    gathered = whole + (width(compute.precision) * shape.parameters if rounded else 0)
    return max(loading, memory.host + gathered) + compute.processes * PROCESS


def scoring(shape: ModelShape, config: Config, at_once: int) -> float:
    """Return bytes of a node that scores `at_once` checkpoints at a time.

    A checkpoint is loaded in main memory before it goes to its GPU. A merge is filled on the GPU; its parents are
    read piece by piece with pread (merge/checkpoints/checkpoint.py), so nothing of them is mapped.
    """
    number = 2 if config.eval.dtype == "bfloat16" else 4
    return at_once * (number * shape.parameters + PROCESS)


def of_a_node(config: Config, memories: Mapping[str, Memory], at_once: int) -> dict[str, float]:
    """Main memory of a node, by what it is needed for."""
    shape = model_shape(config)
    needs = {kind: training(shape, config, memory) for kind, memory in memories.items()}
    return {**needs, "scoring": scoring(shape, config, at_once)}
