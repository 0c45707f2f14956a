"""Bytes per GPU in training.

Model states are those of Rajbhandari et al. 2020 ("ZeRO", section 3.1: Adam in mixed precision keeps 2 + 2 + 12 bytes a
parameter) with the 32-bit gradients that DeepSpeed adds, so that the sums are what
`estimate_zero2_model_states_mem_needs` and `estimate_zero3_model_states_mem_needs` of DeepSpeed say.

Activations are counted for Llama's layer in the way of Korthikanti et al. 2022 ("Reducing Activation Recomputation in
Large Transformer Models", section 4: sum the tensors that the backward pass needs), with attention that keeps no matrix
of weights (SDPA, FlashAttention).

Not everything is alive at once. The peak is the larger of two moments of a step after the first one: where the backward
pass begins (all activations and the block of logits, no gradients yet unless earlier passes of the step left some), and
where it ends (all gradients, the last layer's activations). `adamw_torch_fused`, the default of transformers'
TrainingArguments, updates in place. tests/pipeline/test_memory.py compares the plan with measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.config.models import ModelShape
from train.parallel import ZERO_STAGES, batch_sizes

if TYPE_CHECKING:
    from pipeline import config
    from train import parallel

    Compute = config.Compute | parallel.Compute  # of a config, or of a training

HOST_SLACK = 1.5  # DeepSpeed's own factor for buffers in a node's memory
BUCKET = 5 * 10**8  # elements: DeepSpeed's default reduce_bucket_size; a buffer of it is there while gradients come
LIVE = 10**9  # elements: DeepSpeed's default stage3_max_live_parameters, which stay gathered


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU.

    copies: weights in 16 bits that autocast makes and keeps for the backward pass. buffers: of communication, and
    weights of other GPUs while they are used. activations: kept for the backward pass. logits: the block at its
    beginning. layer: of one layer while its backward pass runs. accumulated: whether gradients of one pass stay until
    the next, as a step has several. host: bytes of a node's main memory that hold offloaded states.
    """

    parameters: float
    gradients: float
    optimizer: float
    copies: float = 0
    buffers: float = 0
    activations: float = 0
    logits: float = 0
    layer: float = 0
    accumulated: bool = False
    host: float = 0

    @property
    def states(self) -> float:
        """Return parameters, their copies and buffers, gradients and optimizer."""
        return self.parameters + self.copies + self.buffers + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """Return the peak."""
        begins = self.copies + self.activations + max(self.logits, self.layer)
        begins += self.gradients if self.accumulated else 0
        ends = self.gradients + self.layer
        return self.parameters + self.optimizer + self.buffers + max(begins, ends)


def width(precision: str) -> int:
    """Return bytes of a number in a pass."""
    return 4 if precision == "fp32" else 2


def states(
    shape: ModelShape, strategy: str, precision: str, processes: int, nodes: int, trained: int | None = None
) -> Memory:
    """Model states a GPU, of `processes` a node.

    DDP and FSDP keep 32-bit weights. Without sharding, autocast makes 16-bit copies of them; FSDP gathers them in 16
    bits (accelerate's MixedPrecisionPolicy), and DeepSpeed trains 16-bit weights beside its 32-bit ones.

    trained: how many parameters get gradients and moments; None: all.
    """
    count, gpus, number = shape.parameters, processes * nodes, width(precision)
    learnt = count if trained is None else trained
    gathered = 4 * shape.embedding_parameters  # ZeRO-3: the largest module, whole, while it is used
    match strategy:
        case "zero2":
            return Memory(number * count, (number + 4) * learnt / gpus, 12 * learnt / gpus)
        case "zero3":
            return Memory(number * count / gpus + gathered, 4 * learnt / gpus, 12 * learnt / gpus)
        case "zero3_offload":
            return Memory(gathered, 0, 0, host=(number * count + 16 * learnt) / nodes * HOST_SLACK)
        case "fsdp":
            return Memory(4 * count / gpus, 4 * learnt / gpus, 8 * learnt / gpus)
    copies = 2 * count if number == 2 else 0
    return Memory(4 * count, 4 * learnt, 8 * learnt, copies)


def buffers(shape: ModelShape, compute: Compute, trained: int) -> float:
    """Return bytes of a GPU that are neither states nor activations: what is gathered from others or waits to be sent.

    DDP: buckets of all gradients beside them (gradient_as_bucket_view is off). ZeRO: one bucket, two where sending
    overlaps with computing (stage_1_and_2.py: setup_buckets), and for ZeRO-3 what stays gathered. FSDP2: the weights
    outside the layers from the first to the last use, and of the layers the one that runs, the next one and gradients.
    """
    number = width(compute.precision)
    if compute.strategy == "fsdp":
        return number * (shape.outer_parameters + 3 * shape.layer_parameters)
    if compute.strategy == "ddp":
        return 4 * trained if compute.processes * compute.nodes > 1 else 0
    if compute.strategy == "zero2":
        return number * BUCKET * (2 if compute.device == "cuda" else 1)
    if compute.strategy in ZERO_STAGES:
        live = min(shape.parameters, LIVE) * number - 4 * shape.embedding_parameters  # `states` counts the embedding
        return number * BUCKET + max(0, live)
    return 0


def layer_activations(
    shape: ModelShape,
    precision: str,
    attention: str | None = "sdpa",
    context: int = 0,
    autocast: bool = False,
    packed: bool = False,
    frozen: bool = False,
) -> float:
    """Return bytes that one layer keeps of one token, by transformers' modeling_llama.py.

    Two norms keep their input in 32 bits, the normalised value and the output that the next matrices read. Autocast
    leaves norms in 32 bits and casts their output for each of the five matrices by itself. Attention keeps queries,
    keys, values and its output; the gated feed-forward keeps gate, SiLU, up and product.

    autocast: 32-bit weights under a 16-bit pass. packed: blocks hold several examples, for which attention takes a
    mask, and with a mask keys and values are repeated for all heads. Eager attention repeats them too, and keeps its
    weights over the `context`. frozen: only LoRA's additions are trained, so norms keep no normalised value.
    """
    number, wide = width(precision), shape.hidden
    normalised = 0 if frozen else 4 if autocast else number
    outputs = 5 * 2 if autocast else 2 * number
    norms = (2 * (4 + normalised) + outputs) * wide
    repeated = packed or attention == "eager"
    keys = shape.query_width if repeated else shape.kv_width
    kept = norms + number * (2 * shape.query_width + 2 * keys + 4 * shape.feed_forward * (shape.active_experts or 1))
    weights = shape.heads * context * (4 + (number if number == 2 else 0)) if attention == "eager" else 0
    return kept + weights + (context if packed else 0)


def activations(
    shape: ModelShape, tokens: int, compute: Compute, context: int, packed: bool = False, frozen: bool = False
) -> Memory:
    """Activations, logits and one layer (other fields 0) for `tokens` tokens in one forward pass.

    With gradient checkpointing each layer keeps its input only, and one layer is whole at a time. While the loss is
    differentiated there are the log-softmax and the gradients of it and of the logits, each in 32 bits
    (loss/loss_utils.py: ForCausalLMLoss); then the logits' gradient and that of the head. Liger kernels make them in
    small chunks.
    """
    number = width(compute.precision)
    autocast = number == 2 and compute.strategy in ("none", "ddp")
    stream = 4 if autocast else number  # bytes of a number between layers: 32-bit embeddings stay so under autocast
    layer = layer_activations(shape, compute.precision, compute.attention, context, autocast, packed, frozen)
    kept = shape.layers * (stream * shape.hidden if compute.gradient_checkpointing else layer)
    last_norm = (8 + 2 if autocast else 4 + 2 * number) * shape.hidden
    head = 0 if frozen else (4 if autocast else number) * shape.embedding_parameters
    logits = 0 if compute.liger else max(12 * shape.vocabulary * tokens, 4 * shape.vocabulary * tokens + head)
    return Memory(0, 0, 0, activations=tokens * (kept + last_norm), logits=logits, layer=tokens * layer)


def training(
    shape: ModelShape,
    compute: Compute,
    batch_tokens: int,
    block_size: int,
    trained: int | None = None,
    packed: bool = False,
) -> Memory:
    """Return the bytes that a GPU needs in training (`trained` parameters, None: all) in steps of `batch_tokens`.

    Raises BadInput if the GPUs cannot divide such a batch.
    """
    world = compute.processes * compute.nodes
    alone = states(shape, compute.strategy, compute.precision, compute.processes, compute.nodes, trained)
    blocks, passes = batch_sizes(batch_tokens, block_size, world, compute.micro_batch)
    kept = activations(shape, blocks * block_size, compute, block_size, packed, trained is not None)
    return replace(
        alone,
        buffers=buffers(shape, compute, shape.parameters if trained is None else trained),
        activations=kept.activations,
        logits=kept.logits,
        layer=kept.layer,
        accumulated=passes > 1 or compute.strategy in ZERO_STAGES,
    )
