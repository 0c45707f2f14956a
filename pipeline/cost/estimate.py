"""Hours, the critical path of the plan, and disk at its peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.config import Config
from pipeline.cost import memory
from pipeline.cost.flops import RECOMPUTED
from pipeline.cost.hardware import Cluster
from pipeline.cost.memory import Memory
from pipeline.cost.model_shape import model_shape, trained_parameters
from pipeline.cost.performance import Performance, to_plan_by
from pipeline.cost.stage_work import Work, checkpoint_bytes, stage_work, state_bytes
from pipeline.stages.cell import Cell, merged
from pipeline.stages.stage import Stage
from pipeline.stages.trajectory import previous_stages, tokens_of

# Assumed. Llama-2-7B's own pre-training: 6ND for 2 T tokens in 184,320 hours of A100 (Touvron et al. 2023, table 2) is
# 0.39.
MFU = 0.4
SCORING_MFU = 0.1  # assumed: short rows of different lengths, and a harness between them
STARTUP = 120.0  # seconds (assumed): imports, loading, joining the other processes
DISK = 1e9  # bytes/s to and from the store (assumed)
MERGING = 3e7  # parameters/s of one merge (measured on one core with 135 M parameters, imports included)
PACKING = 1e6  # tokens/s that one process tokenises and packs (`make bench-data`, rounded down)
READING = 2e7  # bytes/s of text that one process reads and writes (assumed)
SCANNING = 2.5e6  # bytes/s of text that one process compares with the items (measured on one core with 2,000 items)


@dataclass(frozen=True)
class Row:
    """A stage with its costs.

    seconds: of wall time, once its parents are done; gpus: held in that time.
    """

    stage: Stage
    cells: int
    done: bool
    work: Work
    seconds: float
    gpus: int
    memory: Memory | None

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600


class Rates(Protocol):
    """The time that work takes."""

    def seconds(self, stage: Stage, work: Work) -> float: ...

    def gpus(self, stage: Stage) -> int: ...


class Untimed:
    """Rates for callers that need tokens and bytes only."""

    def seconds(self, stage: Stage, work: Work) -> float:
        return 0.0

    def gpus(self, stage: Stage) -> int:
        return 0


@dataclass(frozen=True)
class OnCluster:
    """Rates by the peak FLOP/s of GPUs and a share of it that is reached (`mfu`, of what is computed, recomputation
    included); trainings by measured rates where there are any.
    """

    cluster: Cluster
    config: Config
    mfu: float = MFU
    measured: Mapping[str, Performance] = field(default_factory=dict)  # by kind: rates of finished trainings

    @property
    def training_flops(self) -> float:
        """Model FLOP/s of all GPUs of a training."""
        compute = self.config.compute
        reached = compute.processes * compute.nodes * self.cluster.gpu.peak(compute.precision) * self.mfu
        return reached / (RECOMPUTED if compute.gradient_checkpointing else 1)

    def gpus(self, stage: Stage) -> int:
        if stage.type.resource == "train":
            return self.config.compute.processes * self.config.compute.nodes
        return getattr(self.config.eval, "gpus", 1) if stage.type.resource == "score" else 0

    @property
    def scoring_flops(self) -> float:
        """Model FLOP/s of scoring; GPUs that share a checkpoint run one after the other."""
        precision = {"bfloat16": "bf16", "float16": "fp16"}.get(self.config.eval.dtype, "fp32")
        return self.cluster.gpu.peak(precision) * SCORING_MFU

    def seconds(self, stage: Stage, work: Work) -> float:
        shape, kind = model_shape(self.config), stage.type
        model = checkpoint_bytes(shape, self.config)
        if kind.resource == "train":
            saves = work.tokens / stage.options.save_every_tokens
            known = to_plan_by(self.measured, stage.kind)
            rate = known.rate * self.gpus(stage) if known else self.training_flops
            return STARTUP + work.flops / rate + (saves * state_bytes(shape, self.config) + work.written) / DISK
        if kind.resource == "score":
            merging = max(work.tries, 1 if "merge" in stage.parents else 0) * shape.parameters / MERGING
            return STARTUP + model / DISK + merging + work.flops / self.scoring_flops
        if kind.resource == "merge":
            return shape.parameters / MERGING + work.written / DISK
        processes = self.config.corpus.workers if self.config.corpus.source == "hub" else 1
        if work.tokens:
            return work.tokens / PACKING / processes + work.written / DISK
        return work.text / (SCANNING if stage.kind == "leaks" else READING) / processes + work.written / DISK


def rows(cells: Sequence[Cell], done: set[str], rates: Rates, memories: Mapping[str, Memory]) -> list[Row]:
    """Return every stage of a sweep once, in the order of the plan.

    `done`: keys that are published. `memories`: by kind, for what trains.
    """
    owners = {stage.key: cell.config for cell in reversed(cells) for stage in cell.stages}
    stages, costed = merged(cells), []
    previous = previous_stages(stages)
    continued = {before.key for before in previous.values()}
    for stage in stages:
        config, before = owners[stage.key], previous.get(stage.key)
        resumed, last = tokens_of(before) if before else 0, stage.key not in continued
        work = stage_work(stage, config, model_shape(config), resumed, last)
        sharing = sum(any(stage.key == other.key for other in cell.stages) for cell in cells)
        memory_held = memories.get("ct" if stage.kind == "base" else stage.kind)
        seconds, gpus = rates.seconds(stage, work), rates.gpus(stage)
        costed.append(Row(stage, sharing, stage.key in done, work, seconds, gpus, memory_held))
    return costed


def critical_path(rows: Sequence[Row]) -> tuple[float, list[Stage]]:
    """Return seconds of the longest chain of stages that wait for one another, and the chain.

    What is done takes no time.
    """
    previous = previous_stages([row.stage for row in rows])
    ends: dict[str, tuple[float, Row | None]] = {}
    by_key = {row.stage.key: row for row in rows}
    for row in rows:
        before = previous.get(row.stage.key)
        needs = [need.key for need in (*row.stage.parents.values(), *([before] if before else [])) if need.key in ends]
        last = max(needs, key=lambda key: ends[key][0], default=None)
        start = ends[last][0] if last else 0.0
        ends[row.stage.key] = (start + (0 if row.done else row.seconds), by_key[last] if last else None)
    last_row = max(rows, key=lambda row: ends[row.stage.key][0])
    step: Row | None = last_row
    chain = []
    while step is not None:
        if not step.done:
            chain.append(step.stage)
        step = ends[step.stage.key][1]
    return ends[last_row.stage.key][0], chain[::-1]


def disk_peak(rows: Sequence[Row], given: float) -> float:
    """Return bytes at the peak: checkpoints that are downloaded, all that is published, and what the largest stage
    needs.
    """
    scratch = max((row.work.scratch for row in rows if not row.done), default=0)
    return given + sum(row.work.written for row in rows) + scratch


def given_bytes(cells: Sequence[Cell]) -> float:
    """Count the bytes of checkpoints that come from the Hub, in 16 bits."""
    parents = {parent.key: parent for cell in cells for stage in cell.stages for parent in stage.parents.values()}
    from_hub = sum(parent.given and parent.options.path.startswith("hub:") for parent in parents.values())
    return 2 * model_shape(cells[0].config).parameters * from_hub


def training_memory(config: Config) -> dict[str, Memory]:
    """Return bytes per GPU while CT and SFT train."""
    shape, trained = model_shape(config), trained_parameters(config)
    parts = (("ct", config.ct), ("sft", config.sft))  # blocks of SFT hold several examples
    return {
        kind: memory.training(shape, config.compute, part.batch_tokens, part.block_size, trained, kind == "sft")
        for kind, part in parts
    }
