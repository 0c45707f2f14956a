"""Check whether trainings and checkpoints fit the GPUs, and find what would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from common.errors import BadInput
from pipeline.config import Config
from pipeline.cost import scoring_memory
from pipeline.cost.estimate import training_memory
from pipeline.cost.hardware import GPUS, Cluster

if TYPE_CHECKING:
    from pipeline.config import Compute

STRATEGIES = ("zero2", "zero3", "fsdp", "zero3_offload")  # from what costs least time to what costs most
MOST_NODES = 64


def on_cluster(config: Config, cluster: Cluster) -> Config:
    """Return the config with as many processes and nodes as the cluster has GPUs and nodes; one GPU, where the strategy
    is `none`.
    """
    alone = config.compute.strategy == "none"
    size = {"processes": 1, "nodes": 1} if alone else {"processes": cluster.per_node, "nodes": cluster.nodes}
    return config.model_copy(update={"compute": config.compute.model_copy(update={"device": "cuda", **size})})


def check(config: Config, cluster: Cluster, trained: bool = True) -> None:
    """Raise BadInput, which states what would fit, if a training or a checkpoint does not fit the GPUs.

    `trained`: whether the sweep trains at all.
    """
    gpu = cluster.gpu
    if config.compute.precision == "bf16" and not gpu.bf16:
        raise BadInput(f"CLUSTER={cluster}: {gpu.name} does not support bf16, got compute.precision=bf16. Set fp16.")
    needs = scoring_memory.needed(config)
    if needs > gpu.usable:
        larger = min(
            (other for other in GPUS.values() if other.usable > needs), key=lambda other: other.memory, default=None
        )
        would = f"{larger.name} is large enough" if larger else "No GPU in our table is large enough"
        raise BadInput(
            f"CLUSTER={cluster}: a checkpoint or a merge needs {gib(needs)} of a GPU for scoring, got "
            f"{gib(gpu.usable)} usable. {would}."
        )
    if trained and (missing := too_large(config, cluster)):
        raise BadInput(
            f"CLUSTER={cluster}: {described(config.compute)} needs {gib(missing)} per GPU, got "
            f"{gib(gpu.usable)} usable. {what_would(config, cluster)}."
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


def too_large(config: Config, cluster: Cluster) -> float:
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
    return max(held.total for held in training_memory(config).values())


def what_would(config: Config, cluster: Cluster) -> str:
    """Return the smallest change that fits: fewer blocks in a pass, then recomputation, then another strategy, then
    more nodes.
    """
    for compute in alternatives(config.compute, cluster):
        if not too_large(config.model_copy(update={"compute": compute}), cluster):
            changes = {
                key: value for key, value in compute.model_dump().items() if value != getattr(config.compute, key)
            }
            changed = " ".join(
                f"compute.{key}={str(value).lower()}"
                for key, value in changes.items()
                if key not in ("processes", "nodes")
            )
            needs = most_memory(config.model_copy(update={"compute": compute}))
            more = (
                f"CLUSTER={compute.nodes}x{cluster.per_node}x{cluster.gpu.name} "
                if compute.nodes > cluster.nodes
                else ""
            )
            return f"Set {more}{changed} ({gib(needs)})"
    return f"Even {MOST_NODES} such nodes are too small: choose GPUs with more memory"


def alternatives(compute: Compute, cluster: Cluster) -> Iterator[Compute]:
    """Other ways to compute the same, from the smallest change on."""
    ways: list[tuple[str, bool]] = [(compute.strategy, compute.gradient_checkpointing), (compute.strategy, True)]
    ways += [(strategy, True) for strategy in (STRATEGIES if cluster.gpus > 1 else STRATEGIES[-1:])]
    nodes = cluster.nodes
    while nodes <= MOST_NODES:
        for strategy, recompute in ways:
            many = strategy != "none"
            sized = {"processes": cluster.per_node if many else 1, "nodes": nodes if many else 1}
            for micro in (compute.micro_batch, 16, 8, 4, 2, 1):
                yield compute.model_copy(
                    update={"strategy": strategy, "gradient_checkpointing": recompute, "micro_batch": micro, **sized}
                )
        nodes *= 2


def described(compute: Compute) -> str:
    """Describe the compute settings, as keys."""
    extra = " compute.gradient_checkpointing=true" if compute.gradient_checkpointing else ""
    return (
        f"compute.strategy={compute.strategy} compute.micro_batch={str(compute.micro_batch or 'null').lower()}{extra}"
    )


def gib(count: float) -> str:
    """Return bytes in GiB."""
    return f"{count / 2**30:.1f} GiB"
