"""Bytes that a GPU holds while it trains.

Model states are those of Rajbhandari et al. 2020 ("ZeRO", section 3.1: Adam in mixed precision keeps 2 + 2 + 12 bytes a
parameter) with the 32-bit gradients that DeepSpeed adds, so that the sums are what
`estimate_zero2_model_states_mem_needs` and `estimate_zero3_model_states_mem_needs` of DeepSpeed say.

Activations are counted for Llama's layer in the way of Korthikanti et al. 2022 ("Reducing Activation Recomputation in
Large Transformer Models", section 4: sum the tensors that the backward pass needs), with attention that keeps no matrix
of weights (SDPA, FlashAttention).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.config.models import ModelShape
from train.parallel import sizes

if TYPE_CHECKING:
    from pipeline.config import Compute

HOST_SLACK = 1.5  # DeepSpeed's own factor for buffers in a node's memory


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU, and bytes a node's main memory holds of the states that were offloaded."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float = 0
    host: float = 0

    @property
    def states(self) -> float:
        """Parameters, gradients and optimizer."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return self.states + self.activations


def width(precision: str) -> int:
    """Bytes of a number in a pass."""
    return 4 if precision == "fp32" else 2


def states(
    shape: ModelShape, strategy: str, precision: str, processes: int, nodes: int, trained: int | None = None
) -> Memory:
    """Model states a GPU, of `processes` a node.

    DDP and FSDP keep 32-bit weights (and autocast, for bf16, its copies of them).

    trained: how many parameters get gradients and moments; None: all.
    """
    count, gpus, number = shape.parameters, processes * nodes, width(precision)
    learnt = count if trained is None else trained
    gathered = 4 * shape.embedding_parameters  # ZeRO-3 and FSDP: the largest module, whole, while it is used
    match strategy:
        case "zero2":
            return Memory(number * count, (number + 4) * learnt / gpus, 12 * learnt / gpus)
        case "zero3":
            return Memory(number * count / gpus + gathered, 4 * learnt / gpus, 12 * learnt / gpus)
        case "zero3_offload":
            return Memory(gathered, 0, 0, host=(number * count + 16 * learnt) / nodes * HOST_SLACK)
        case "fsdp":
            return Memory(4 * count / gpus + gathered, 4 * learnt / gpus, 8 * learnt / gpus)
    copies = 0 if precision == "fp32" else 2 * count
    buckets = 4 * learnt if strategy == "ddp" and gpus > 1 else 0
    return Memory(4 * count + copies, 4 * learnt + buckets, 8 * learnt)


def layer_activations(shape: ModelShape, precision: str, attention: str | None = "sdpa", context: int = 0) -> float:
    """Bytes that one layer keeps of one token: two norms (their input in 32 bits, the normalised value, the output that
    the next matrices read), queries, keys, values, the attention's output, and of the gated feed-forward gate, up, SiLU
    and product. Eager attention keeps its weights over the `context` too.
    """
    number = width(precision)
    kept = 8 * shape.hidden + number * (6 * shape.hidden + 2 * shape.kv_width + 4 * shape.feed_forward)
    return kept + (shape.heads * context * (4 + number) if attention == "eager" else 0)


def activations(shape: ModelShape, tokens: int, compute: Compute, context: int) -> float:
    """Bytes of activations for `tokens` tokens in one forward pass.

    With gradient checkpointing each layer keeps its input only, and one layer is whole at a time. Logits (and, of bf16,
    their 32-bit copy) stand beside their log-softmax and the gradients of both; liger kernels make them in small
    chunks.
    """
    number = width(compute.precision)
    layer = layer_activations(shape, compute.precision, compute.attention, context)
    layers = layer + shape.layers * number * shape.hidden if compute.gradient_checkpointing else shape.layers * layer
    logits = 0 if compute.liger else shape.vocabulary * (number + (4 if number == 2 else 0) + 12)
    return tokens * (layers + logits)


def training(
    shape: ModelShape, compute: Compute, batch_tokens: int, block_size: int, trained: int | None = None
) -> Memory:
    """What a GPU holds while it trains (`trained` parameters, None: all) in steps of `batch_tokens`.

    Raises BadInput where the GPUs cannot share such a batch.
    """
    alone = states(shape, compute.strategy, compute.precision, compute.processes, compute.nodes, trained)
    blocks, _ = sizes(batch_tokens, block_size, compute.processes * compute.nodes, compute.micro_batch)
    kept = activations(shape, blocks * block_size, compute, block_size)
    return replace(alone, activations=kept)


def scoring(shape: ModelShape, batch_tokens: int, dtype: str) -> float:
    """Bytes of a checkpoint that is scored: its weights in `dtype`, and logits in 32 bits with their copy."""
    number = 2 if dtype == "bfloat16" else 4
    return shape.parameters * number + batch_tokens * (shape.vocabulary * (number + 8) + 16 * shape.hidden)
