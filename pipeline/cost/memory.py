"""Bytes that a training or a scoring needs on a GPU and in a node's main memory, and whether a cluster has them.

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

A base that LoRA freezes may have fewer bits, and AdamW's moments too (train/memory_saving.py). In nf4 a weight has 4
bits, 64 weights share a scale of 8 bits, and 256 of these scales one of 32 (Dettmers et al. 2023, arXiv 2305.14314,
section 3).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

from common.errors import BadInput
from common.hub import local_folder
from pipeline.config import Compute, Config, ModelShape
from pipeline.cost.hardware import GPUS, Cluster
from pipeline.cost.shape import Trained, all_weights, model_shape, trained_by
from train import averaging, memory_saving
from train.distributed import ZERO_STAGES, batch_sizes
from train.settings import MemorySaving

HOST_SLACK = 1.5  # DeepSpeed's own factor for buffers in a node's memory
BUCKET = 5 * 10**8  # elements: DeepSpeed's default reduce_bucket_size; a buffer of it is there while gradients come
LIVE = 10**9  # elements: DeepSpeed's default stage3_max_live_parameters, which stay gathered
BASE_BYTES = {"float32": 4, "bfloat16": 2, "nf4": 1 / 2 + 1 / 64 + 4 / (64 * 256)}  # of a weight of a frozen layer
MOMENT_8BIT = 1 + 4 / 256  # bytes of a weight: 256 of them share a scale of 32 bits


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU.

    copies: weights in 16 bits that autocast makes and keeps for the backward pass. buffers: of communication, and
    weights of other GPUs while they are used. activations: kept for the backward pass. logits: the block at its
    beginning. layer: of one layer while its backward pass runs. accumulated: whether gradients of one pass stay until
    the next, as a step has several. host: bytes of a node's main memory for offloaded states or a mean of weights.
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
    shape: ModelShape,
    strategy: str,
    precision: str,
    processes: int,
    nodes: int,
    trained: Trained | None = None,
    recomputed: bool = False,
) -> Memory:
    """Model states a GPU, of `processes` a node.

    DDP and FSDP keep 32-bit weights. Without sharding, autocast makes 16-bit copies of them; FSDP gathers them in 16
    bits (accelerate's MixedPrecisionPolicy), and DeepSpeed trains 16-bit weights beside its 32-bit ones.

    trained: None: all weights. recomputed: whether activations are.
    """
    trained = trained or all_weights(shape)
    gpus, number, learnt = processes * nodes, width(precision), trained.parameters
    count = shape.parameters + (learnt if trained.frozen else 0)
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
    fewer = shape.layers * shape.linear_parameters * (4 - BASE_BYTES[trained.saving.base_dtype])
    copies = copied_weights(shape, trained, recomputed) if number == 2 else 0
    return Memory(4 * count - fewer, 4 * learnt, moment_bytes(trained), 2 * copies)


def moment_bytes(trained: Trained) -> float:
    """Return bytes of AdamW's two moments. 8-bit AdamW keeps those of the embedding in 32 bits."""
    if trained.saving.optimizer == "adamw":
        return 8 * trained.parameters
    return 8 * trained.embedding + 2 * MOMENT_8BIT * (trained.parameters - trained.embedding)


def copied_weights(shape: ModelShape, trained: Trained, recomputed: bool) -> int:
    """Count the weights of which there are 16-bit copies at once.

    Autocast keeps copies of weights that get gradients until the forward pass ends. Frozen ones are copied for each
    layer's own backward pass: where activations are recomputed, of one layer at a time. Layers in bfloat16 or nf4 are
    not copied.
    """
    if not trained.frozen:
        return shape.parameters
    layers = (1 if recomputed else shape.layers) if trained.saving.base_dtype == "float32" else 0
    return layers * shape.linear_parameters + shape.embedding_parameters + trained.parameters


def buffers(shape: ModelShape, compute: Compute, trained: Trained) -> float:
    """Return bytes of a GPU that are neither states nor activations: what is gathered from others or waits to be sent.

    DDP: buckets of all gradients beside them (gradient_as_bucket_view is off). ZeRO: one bucket, two where sending
    overlaps with computing (stage_1_and_2.py: setup_buckets), and for ZeRO-3 what stays gathered. FSDP2: the weights
    outside the layers from the first to the last use, and of the layers the one that runs, the next one and gradients.
    """
    number = width(compute.precision)
    if compute.strategy == "fsdp":
        return number * (shape.outer_parameters + 3 * shape.layer_parameters)
    if compute.strategy == "ddp":
        return 4 * trained.parameters if compute.processes * compute.nodes > 1 else 0
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
    trained: Trained | None = None,
) -> float:
    """Return bytes that one layer keeps of one token, by transformers' modeling_llama.py.

    Two norms keep their input in 32 bits, the normalised value and the output that the next matrices read. Autocast
    leaves norms in 32 bits and casts their output for each of the five matrices by itself. Attention keeps queries,
    keys, values and its output; the gated feed-forward keeps gate, SiLU, up and product.

    autocast: 32-bit weights under a 16-bit pass. packed: blocks hold several examples, for which attention takes a
    mask, and with a mask keys and values are repeated for all heads. Eager attention repeats them too, and keeps its
    weights over the `context`. If only LoRA's factors are trained, norms keep no normalised value. Layers in nf4 give
    their results in 32 bits: gate, SiLU and up are kept so.
    """
    number, wide = width(precision), shape.hidden
    frozen = trained is not None and trained.frozen
    normalised = 0 if frozen else 4 if autocast else number
    outputs = 5 * 2 if autocast else 2 * number
    norms = (2 * (4 + normalised) + outputs) * wide
    repeated = packed or attention == "eager"
    keys = shape.query_width if repeated else shape.kv_width
    kept = norms + number * (2 * shape.query_width + 2 * keys + 4 * shape.feed_forward * (shape.active_experts or 1))
    if trained is not None and trained.saving.base_dtype == "nf4" and not shape.experts:
        kept += (4 - number) * 3 * shape.feed_forward
    weights = shape.heads * context * (4 + (number if number == 2 else 0)) if attention == "eager" else 0
    return kept + weights + (context if packed else 0)


def activations(
    shape: ModelShape, tokens: int, compute: Compute, context: int, packed: bool = False, trained: Trained | None = None
) -> Memory:
    """Activations, logits and one layer (other fields 0) for `tokens` tokens in one forward pass.

    With gradient checkpointing each layer keeps its input only, and one layer is whole at a time. While the loss is
    differentiated there are the log-softmax and the gradients of it and of the logits, each in 32 bits
    (loss/loss_utils.py: ForCausalLMLoss); then the logits' gradient and that of the head. Liger kernels make them in
    small chunks.
    """
    trained = trained or all_weights(shape)
    number, frozen = width(compute.precision), trained.frozen
    autocast = number == 2 and compute.strategy in ("none", "ddp")
    stream = 4 if autocast else number  # bytes of a number between layers: 32-bit embeddings stay so under autocast
    layer = layer_activations(shape, compute.precision, compute.attention, context, autocast, packed, trained)
    kept = shape.layers * (stream * shape.hidden if compute.gradient_checkpointing else layer)
    last_norm = (8 + 2 if autocast else 4 + 2 * number) * shape.hidden
    head = 0 if frozen else (4 if autocast else number) * shape.embedding_parameters
    logits = 0 if compute.liger else max(12 * shape.vocabulary * tokens, 4 * shape.vocabulary * tokens + head)
    # an nf4 matrix is brought to 32 bits, and from there to those of the pass, while it is used
    unpacked = (4 + number) * shape.hidden * shape.feed_forward if trained.saving.base_dtype == "nf4" else 0
    return Memory(0, 0, 0, activations=tokens * (kept + last_norm), logits=logits, layer=tokens * layer + unpacked)


def training_memory(
    shape: ModelShape,
    compute: Compute,
    batch_tokens: int,
    block_size: int,
    trained: Trained | None = None,
    packed: bool = False,
) -> Memory:
    """Return the bytes that a GPU needs in training (`trained`; None: all weights) in steps of `batch_tokens`.

    Raises BadInput if the GPUs cannot divide such a batch.
    """
    world = compute.processes * compute.nodes
    trained = trained or all_weights(shape)
    how = (compute.strategy, compute.precision, compute.processes, compute.nodes)
    alone = states(shape, *how, trained, compute.gradient_checkpointing)
    blocks, passes = batch_sizes(batch_tokens, block_size, world, compute.micro_batch)
    kept = activations(shape, blocks * block_size, compute, block_size, packed, trained)
    return replace(
        alone,
        buffers=buffers(shape, compute, trained),
        activations=kept.activations,
        logits=kept.logits,
        layer=kept.layer,
        accumulated=passes > 1 or compute.strategy in ZERO_STAGES,
    )


def memory_of_trainings(config: Config) -> dict[str, Memory]:
    """Return bytes per GPU while CT and SFT train."""
    shape, trained = model_shape(config), trained_by(config)
    parts = (("ct", config.ct), ("sft", config.sft))  # blocks of SFT hold several examples
    needs = {
        kind: training_memory(shape, config.compute, part.batch_tokens, part.block_size, trained, kind == "sft")
        for kind, part in parts
    }
    mean = 4 * trained.parameters if config.ct.averages else 0  # train/averaging.py
    return {**needs, "ct": replace(needs["ct"], host=needs["ct"].host + mean)}


# --- scoring
#
# One merged model is in memory, whatever the number of candidates: it is refilled. Its dtype is the base's (`out_dtype:
# base` of merge/recipe.py) until scoring casts it.

# merge/engine: elements of a slice, bytes that all threads may keep of whole tensors, and of these bytes an element
SLICE, RESIDENT, RESIDENT_BYTES = 1 << 19, 1 << 29, 5
ARRAYS = 16  # 32-bit arrays of a slice that a thread holds while it merges (assumed: two parents, base, masks, result)


def scoring_memory(
    shape: ModelShape, batch_tokens: int, dtype: str, gpus: int = 1, cached_tokens: int = 0, context: int = 0
) -> float:
    """Return bytes of one GPU of `gpus` that share a checkpoint while it is scored.

    The weights in `dtype`, and the larger of three that follow one another: a layer's intermediate values, the logits
    of a batch, and the key-value cache of generation for `cached_tokens`. eval/language_model.py brings logits to 32
    bits, and logsumexp subtracts and exponentiates in a copy of them.

    context: tokens of a row that takes a mask, 0: none. Layers are shared, the embedding and the head are not.
    """
    number = 2 if dtype in ("bfloat16", "float16") else 4
    weights = number * shape.parameters
    if gpus > 1:
        weights = number * (ceil(shape.layers / gpus) * shape.layer_parameters + shape.embedding_parameters)
    feed_forward = 3 * shape.feed_forward * (shape.active_experts or 1)
    layer = batch_tokens * (4 * 2 * shape.hidden + number * (2 * shape.hidden + feed_forward))
    logits = batch_tokens * (8 * shape.vocabulary + number * shape.hidden)
    cache = cached_tokens * 2 * shape.kv_width * shape.layers * number / gpus
    return weights + max(layer, logits, cache) + batch_tokens * context * number


def merging_memory(shape: ModelShape, number: int, threads: int) -> float:
    """Return bytes of a merge in memory while it is filled: the model, `number` bytes per parameter, and what threads
    work on.

    A thread keeps magnitudes of a tensor, within the bound of all threads, and a few arrays of a slice.
    """
    largest = max(shape.embedding_parameters, shape.hidden * shape.feed_forward * (shape.experts or 1))
    working = min(RESIDENT, threads * RESIDENT_BYTES * largest)
    return number * shape.parameters + working + threads * ARRAYS * 4 * min(SLICE, largest)


def needed_to_score(config: Config, tuned: bool = True) -> float:
    """Return bytes of a GPU for the scoring of a cell's checkpoints and, where it is `tuned` or merges, of its
    merges.
    """
    shape, asked = model_shape(config), config.eval
    gpus = getattr(asked, "gpus", 1)  # devices that share a checkpoint
    # Which of lm-eval's tasks generate is not known here. An adaptation answers questions.
    generates = bool(asked.tasks or asked.include_path or config.adapt)
    cached = asked.batch_tokens if generates else 0
    scored = scoring_memory(shape, asked.batch_tokens, asked.dtype, gpus, cached)
    if not (tuned and config.merge.methods):
        return scored
    return max(scored, merging_memory(shape, base_width(config), config.compute.threads))


def base_width(config: Config) -> int:
    """Return bytes per parameter of the base, which merges have too: of its folder, else 2 of the Hub's and 4 of our
    own.
    """
    folder = local_folder(config.model.path)
    if folder and (file := folder / "config.json").is_file():
        stated = json.loads(file.read_text(encoding="utf-8"))
        text = stated.get("text_config") or {}
        found = next(
            (each.get(key) for each in (stated, text) for key in ("dtype", "torch_dtype") if each.get(key)), ""
        )
        return 2 if found in ("bfloat16", "float16") else 4
    return 2 if config.model.path else 4


# --- main memory of a node

PROCESS = 10**9  # bytes besides tensors: Python, torch, transformers, compiled loops (0.7 + 0.2 GB on a CPU)


def node_memory_of_training(shape: ModelShape, config: Config, memory: Memory) -> float:
    """Return bytes of a node at the peak of a training on GPUs.

    train/hf_trainer.py loads the model in 32 bits in the main memory of every process, which brings it to
    its GPU then. ZeRO-3 hands out the tensors of one file as it reads them, so a node holds one copy. In the end the
    first process gathers the weights in 32 bits (Trainer.publish). Under DeepSpeed those that LoRA leaves untrained
    come in the precision of the passes, and it reads the base's beside them; of a base in fewer bits it reads the
    base's and adds the factors to a copy. At the same time states may be offloaded.
    """
    compute = config.compute
    whole = 4 * shape.parameters
    sharded_as_read = compute.strategy in ("zero3", "zero3_offload")
    loading = whole * (1 if sharded_as_read else compute.processes)
    rounded = compute.strategy.startswith("zero") and compute.precision != "fp32" and config.train.lora
    gathered = whole + (width(compute.precision) * shape.parameters if rounded else 0)
    gathered += whole if config.train.base_dtype != "float32" else 0
    return max(loading, memory.host + gathered) + compute.processes * PROCESS


def node_memory_of_scoring(shape: ModelShape, config: Config, at_once: int) -> float:
    """Return bytes of a node that scores `at_once` checkpoints at a time.

    A checkpoint is loaded in main memory before it goes to its GPU. A merge is filled on the GPU; its parents are
    read piece by piece with pread (merge/checkpoints/checkpoint.py), so nothing of them is mapped.
    """
    number = 2 if config.eval.dtype == "bfloat16" else 4
    return at_once * (number * shape.parameters + PROCESS)


def node_memory(config: Config, memories: Mapping[str, Memory], at_once: int) -> dict[str, float]:
    """Main memory of a node, by what it is needed for."""
    shape = model_shape(config)
    needs = {kind: node_memory_of_training(shape, config, memory) for kind, memory in memories.items()}
    return {**needs, "scoring": node_memory_of_scoring(shape, config, at_once)}


# --- whether it fits a cluster, and what would

STRATEGIES = ("zero2", "zero3", "fsdp", "zero3_offload")  # from what costs least time to what costs most
MOST_NODES = 64
NO_SAVING = {name: field.default for name, field in MemorySaving.model_fields.items()}


def on_cluster(config: Config, cluster: Cluster) -> Config:
    """Return the config with as many processes and nodes as the cluster has GPUs and nodes; one GPU, where the strategy
    is `none`.
    """
    alone = config.compute.strategy == "none"
    size = {"processes": 1, "nodes": 1} if alone else {"processes": cluster.per_node, "nodes": cluster.nodes}
    return config.model_copy(update={"compute": config.compute.model_copy(update={"device": "cuda", **size})})


def check_fit(config: Config, cluster: Cluster, trained: bool = True) -> None:
    """Raise BadInput, which states what would fit, if a training or a checkpoint does not fit the GPUs.

    `trained`: whether the sweep trains at all.
    """
    gpu = cluster.gpu
    if config.compute.precision == "bf16" and not gpu.bf16:
        raise BadInput(f"CLUSTER={cluster}: {gpu.name} does not support bf16, got compute.precision=bf16. Set fp16.")
    needs = needed_to_score(config)
    if needs > gpu.usable:
        larger = min(
            (other for other in GPUS.values() if other.usable > needs), key=lambda other: other.memory, default=None
        )
        would = f"{larger.name} is large enough" if larger else "No GPU in our table is large enough"
        raise BadInput(
            f"CLUSTER={cluster}: a checkpoint or a merge needs {gib(needs)} of a GPU for scoring, got "
            f"{gib(gpu.usable)} usable. {would}."
        )
    if trained and (missing := excess_memory(config, cluster)):
        raise BadInput(
            f"CLUSTER={cluster}: {compute_in_words(config.compute)} needs {gib(missing)} per GPU, got "
            f"{gib(gpu.usable)} usable. {nearest_fit(config, cluster)}."
        )


def host_warning(needs: Mapping[str, float], cluster: Cluster) -> str | None:
    """Warn of a node whose main memory is too small; None if it is large enough or not known."""
    what, most = max(needs.items(), key=lambda item: item[1])
    if cluster.host is None or most <= cluster.host:
        return None
    return (
        f"warning: {what} takes {gib(most)} of a node's main memory, and a node of {cluster.per_node}x"
        f"{cluster.gpu.name} has {gib(cluster.host)}; take fewer processes a node or another strategy"
    )


def excess_memory(config: Config, cluster: Cluster) -> float:
    """Return bytes per GPU that the trainings want, where that is more than there are; else 0.

    Raises BadInput if the batch cannot be shared.
    """
    try:
        needs = most_memory(config)
    except BadInput as error:
        raise BadInput(f"CLUSTER={cluster}: {error}") from None
    return needs if needs > cluster.gpu.usable else 0


def most_memory(config: Config) -> float:
    """Return bytes per GPU while the larger of the trainings runs. Raises BadInput if the batch cannot be shared."""
    return max(held.total for held in memory_of_trainings(config).values())


def nearest_fit(config: Config, cluster: Cluster) -> str:
    """Return the smallest change that fits: fewer blocks in a pass, then recomputation, then LoRA's base in 16 bits,
    another strategy or LoRA's base in 4 bits, then more nodes.
    """
    for other in alternatives(config, cluster):
        if not excess_memory(other, cluster):
            compute = other.compute
            changes = {
                f"{section}.{key}": value
                for section in ("compute", "train")
                for key, value in getattr(other, section)
                if value != getattr(getattr(config, section), key) and key not in ("processes", "nodes")
            }
            changed = " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
            more = (
                f"CLUSTER={compute.nodes}x{cluster.per_node}x{cluster.gpu.name} "
                if compute.nodes > cluster.nodes
                else ""
            )
            return f"Set {more}{changed} ({gib(most_memory(other))})"
    return f"Even {MOST_NODES} such nodes are too small: choose GPUs with more memory"


def alternatives(config: Config, cluster: Cluster) -> Iterator[Config]:
    """Other ways to train the same, from the smallest change on."""
    compute, train = config.compute, config.train
    bfloat16, nf4 = ({"base_dtype": dtype} for dtype in ("bfloat16", "nf4"))
    sharded = STRATEGIES if cluster.gpus > 1 else STRATEGIES[-1:]
    ways: list[tuple[str, bool, dict[str, str]]] = [
        (compute.strategy, compute.gradient_checkpointing, {}),
        (compute.strategy, True, {}),
        (compute.strategy, True, bfloat16),
        *((strategy, True, NO_SAVING) for strategy in sharded if strategy != STRATEGIES[-1]),
        (compute.strategy, True, nf4),
        (STRATEGIES[-1], True, NO_SAVING),
    ]
    nodes = cluster.nodes
    while nodes <= MOST_NODES:
        for strategy, recompute, changes in ways:
            saving = train.model_copy(update=changes)
            wrong = memory_saving.contradiction(saving, train.lora is not None, compute.precision, strategy)
            if wrong or (config.ct.averages and averaging.contradiction(train.lora is not None, strategy)):
                continue
            many = strategy != "none"
            sized = {"processes": cluster.per_node if many else 1, "nodes": nodes if many else 1}
            for micro in (compute.micro_batch, 16, 8, 4, 2, 1):
                how = {"strategy": strategy, "gradient_checkpointing": recompute, "micro_batch": micro, **sized}
                yield config.model_copy(update={"compute": compute.model_copy(update=how), "train": saving})
        nodes *= 2


def compute_in_words(compute: Compute) -> str:
    """Describe the compute settings, as keys."""
    extra = " compute.gradient_checkpointing=true" if compute.gradient_checkpointing else ""
    return (
        f"compute.strategy={compute.strategy} compute.micro_batch={str(compute.micro_batch or 'null').lower()}{extra}"
    )


def gib(count: float) -> str:
    """Return bytes in GiB."""
    return f"{count / 2**30:.1f} GiB"
