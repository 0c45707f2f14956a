"""What a stage costs: its tokens, FLOPs and bytes, its seconds, and those of the whole plan.

Tokens of trainings and blocks are exact. Those of scoring are unknown before the items exist; the assumed sizes are
constants here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import yaml

from common.errors import BadInput
from eval.task_checks import GENERATED, LENGTH_KEYS
from pipeline.config import Config, ModelShape
from pipeline.cost.hardware import Cluster, Speed, speed_to_plan_by
from pipeline.cost.memory import Memory, base_width, moment_bytes, width
from pipeline.cost.shape import RECOMPUTED, forward_flops, model_shape, trained_by, training_flops
from pipeline.page_questions import COUNT as QUESTIONS
from pipeline.stages.cell import Cell, merged, owners
from pipeline.stages.stage import Stage
from pipeline.stages.trajectory import previous_stages, tokens_of
from pipeline.store import Store

# An item of our families with its choices: the mean of all five, measured on the default experiment.
ITEM_TOKENS = {"own": 90, "en": 43}
# A task of lm-eval (assumed): a passage, its question and four choices in a script that falls into bytes.
TASK_ITEMS, TASK_TOKENS = 1000, 1500
TEXTS = {"bible": 95, "cipher": 95}  # held-out documents of a corpus, where their number is known
MANY_TEXTS = 1000  # and where it is not (assumed)
BYTES_A_TOKEN = {"own": 1.64, "en": 3.5}  # of text; measured on the default experiment
# A generated token takes as long as so many that are read (assumed): weights pass once for a token of each row.
GENERATING = 10
COMPRESSED = 3  # how much smaller text is on the disk, with zstd
SMALL = 10**6  # bytes: records, recipes, scores


@dataclass(frozen=True)
class Work:
    """tokens: through the model.

    flops: of these. written: bytes on the disk in the end; scratch: bytes beside them while it is made. text: bytes of
    text that are read, uncompressed.
    """

    tokens: float = 0
    flops: float = 0
    written: float = SMALL
    scratch: float = 0
    tries: int = 0
    text: float = 0


def stage_work(stage: Stage, config: Config, shape: ModelShape, resumed: int = 0, last: bool = True) -> Work:
    """Return the work of a stage of a cell.

    A CT stage continues from `resumed` tokens of its trajectory; `last`: no larger budget continues from it.
    """
    settings, kind = stage.settings, stage.kind
    if stage.type.resource == "train":
        trained = stage.tokens - resumed
        model, state = checkpoint_bytes(shape, config), state_bytes(shape, config)
        # pipeline/stages/trajectory.py: the states of other budgets are dropped
        kept = state if stage.trajectory and last and config.compute.keep_last_state else 0
        # the last two checkpoints, the state that is dropped later, the one that is continued from
        beside = (2 if kept else 3) + (resumed > 0)
        # a checkpoint of a decay that averages has the mean beside the weights (train/averaging.py)
        mean = 2 * 4 * shape.parameters if getattr(settings, "averaged_steps", ()) else 0
        return Work(
            trained,
            trained * training_flops(shape, settings.block_size, getattr(settings, "lora", None) is not None),
            model + kept + SMALL,
            beside * state + mean,
        )
    if kind == "answers":
        questions = QUESTIONS if settings.questions is None else len(settings.questions)
        tokens = questions * (ITEM_TOKENS["own"] + settings.tokens)
        return Work(tokens, tokens * forward_flops(shape, settings.tokens / 2))
    if stage.type.resource == "score":
        tries = settings.trials if kind == "tune" else 1
        tokens, lengths = scored_tokens(stage, config)
        return Work(
            tries * tokens,
            tries * tokens * forward_flops(shape, lengths / 2),
            tries=tries if kind == "tune" else 0,
        )
    if kind == "adapted":
        return Work(written=(4 if settings.dtype == "float32" else 2) * shape.parameters)
    if kind in ("weights", "base_extended"):
        return Work(written=base_width(config) * shape.parameters)
    if kind == "ct_blocks":
        packed = config.ct.schedule_tokens  # of all the text an estimate
        width_of_all = packed * token_bytes(shape)
        return Work(packed, 0, width_of_all, width_of_all)
    if kind in ("sft_blocks", "mixed_blocks"):
        return Work(settings.tokens, 0, settings.tokens * (token_bytes(shape) + 4 + 2), 0)
    if kind in ("corpus", "instructions"):
        size = corpus_bytes(config) if kind == "corpus" else instruction_bytes(config)
        return Work(written=size / COMPRESSED, text=size)
    if kind == "text_source":
        size = source_bytes(config, settings.name)
        return Work(written=size / COMPRESSED, text=size)
    if kind == "leaks":
        sources = sum(source_bytes(config, name) for name in config.ct.fractions)
        return Work(text=corpus_bytes(config) + instruction_bytes(config) + sources)
    return Work()


def token_bytes(shape: ModelShape) -> int:
    """Return bytes of a token in a block."""
    return 2 if shape.vocabulary <= 2**16 else 4


def checkpoint_bytes(shape: ModelShape, config: Config) -> int:
    """Return a trained model on the disk: its weights in 32 bits, and LoRA's additions beside them."""
    return 4 * shape.parameters + (4 * trained_by(config).parameters if config.train.lora else 0)


def state_bytes(shape: ModelShape, config: Config) -> float:
    """Count the bytes of a training state: weights in 32 bits and two moments of Adam; DeepSpeed adds two copies of
    the model.
    """
    copies = 2 * width(config.compute.precision) * shape.parameters if config.compute.strategy.startswith("zero") else 0
    trained = trained_by(config)
    return 4 * trained.parameters + moment_bytes(trained) + copies


def corpus_bytes(config: Config) -> float:
    """Return the text of both languages."""
    corpus = config.corpus
    if corpus.source == "hub":
        return (corpus.text_bytes or 0) + (corpus.english_bytes or 0)
    return 20 * SMALL  # a Bible in two languages; files of one's own are read where they are, and are seldom more


def source_bytes(config: Config, name: str) -> float:
    """Return the text of a source of CT; if no bound is set, no less than the training reads."""
    source = (config.ct.sources or {})[name]
    return source.max_bytes or source.fraction * config.ct.schedule_tokens * BYTES_A_TOKEN["own"]


def instruction_bytes(config: Config) -> float:
    """Return the text of instructions from the Hub; of all of them (`bytes: null`) no less than the training reads."""
    hub = config.sft.hub
    return (hub.bytes or config.sft.tokens * BYTES_A_TOKEN["en"]) if hub else 0


def scored_tokens(stage: Stage, config: Config) -> tuple[float, float]:
    """Return (tokens that one checkpoint reads, their mean distance to the end of their text) of a scoring stage."""
    tuning = stage.kind == "tune"
    limit = config.eval.tune_limit if tuning else config.eval.limit
    items = min(limit or config.eval.items, config.eval.items) * len(config.eval.families)
    texts = min(limit or MANY_TEXTS, TEXTS.get(config.corpus.source, MANY_TEXTS))
    characters = config.eval.max_chars or 4000
    text = {language: texts * characters / size for language, size in BYTES_A_TOKEN.items()}
    if tuning:
        return (
            (text["own"], characters / 2)
            if config.merge.metric == "bits_per_byte"
            else (items * ITEM_TOKENS["own"], ITEM_TOKENS["own"])
        )
    documents, shots = min(limit or TASK_ITEMS, TASK_ITEMS), config.eval.fewshot
    examples = shots.values() if isinstance(shots, Mapping) else [shots or 0] * len(config.eval.tasks)
    asked = (len(config.eval.tasks) + sum(examples)) * documents * TASK_TOKENS
    generated = documents * generated_tokens(config) * GENERATING
    prompts = items * sum(ITEM_TOKENS.values()) + asked + generated
    ways = 2 if config.eval.chat == "both" else 1  # plain and by the template
    return ways * prompts + sum(text.values()), TASK_TOKENS if asked else ITEM_TOKENS["own"]


# --- tokens that tasks of a user let a model generate: read from their YAML, as lm-eval takes seconds to import


class _Loader(yaml.SafeLoader):
    """Reads YAML whose tags it does not know, such as lm-eval's !function, as nothing."""


_Loader.add_multi_constructor("!", lambda loader, tag, node: None)


def generated_tokens(config: Config) -> int:
    """Return how many tokens one document of each scored task lets a model generate, in all.

    Of tasks in eval.include_path. What lm-eval ships is not read here, and counts as tasks that generate nothing.
    """
    if config.eval.include_path is None:
        return 0
    lengths = _lengths(Path(config.eval.include_path))
    wanted = config.eval.tasks or list(lengths)
    return sum(lengths.get(name, 0) for name in wanted)


@cache
def _lengths(folder: Path) -> dict[str, int]:
    """Return by task the tokens that a document lets a model generate; 0 for tasks that generate nothing."""
    lengths: dict[str, int] = {}
    for path in sorted(folder.rglob("*.yaml")):
        task = _read(path)
        if isinstance(name := task.get("task"), str):
            settings = task.get("generation_kwargs") or {}
            length = next((settings[key] for key in LENGTH_KEYS if settings.get(key) is not None), GENERATED)
            lengths[name] = int(length) if task.get("output_type") == "generate_until" else 0
    return lengths


def _read(path: Path, depth: int = 0) -> Mapping[str, Any]:
    """Return a task's YAML on top of the one that it includes; empty if it cannot be read, which a check reports."""
    try:
        stated = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(stated, dict):
        return {}
    below = stated.get("include")
    if not isinstance(below, str) or depth > 5:
        return stated
    return {**_read(path.parent / below, depth + 1), **stated}


# --- how long it takes: on a named cluster, or by what this machine has measured

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


class Rates(Protocol):
    """The time that work takes."""

    def seconds(self, stage: Stage, work: Work) -> float: ...

    def gpus(self, stage: Stage) -> int: ...


class NoRates:
    """Rates for callers that need tokens and bytes only."""

    def seconds(self, stage: Stage, work: Work) -> float:
        return 0.0

    def gpus(self, stage: Stage) -> int:
        return 0


@dataclass(frozen=True)
class ClusterRates:
    """Rates by the peak FLOP/s of GPUs and a share of it that is reached (`mfu`, of what is computed, recomputation
    included); trainings by measured rates where there are any.
    """

    cluster: Cluster
    config: Config
    mfu: float = MFU
    measured: Mapping[str, Speed] = field(default_factory=dict)  # by kind: rates of finished trainings

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
            known = speed_to_plan_by(self.measured, stage.kind)
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


@dataclass(frozen=True)
class MeasuredRates:
    """flops: FLOP/s of training and of scoring, by class; mean: seconds of stages without FLOPs, by kind."""

    flops: Mapping[str, float]
    mean: Mapping[str, float]

    def seconds(self, stage: Stage, work: Work) -> float:
        rate = self.flops.get(classify(stage))
        return work.flops / rate if rate and work.flops else self.mean.get(stage.kind, 0.0)

    def gpus(self, stage: Stage) -> int:
        return 0


def classify(stage: Stage) -> str:
    """Return the class of kinds that work at one rate: training, scoring, or the kind alone."""
    return {"train": "training", "score": "scoring"}.get(stage.type.resource, stage.kind)


def calibrate(done: Sequence[tuple[Stage, Work, float]]) -> MeasuredRates:
    """Return rates from (stage, its work, its seconds).

    The larger stages of each class decide, by their median: start-up matters least for them.
    """
    flops: dict[str, float] = {}
    for name in ("training", "scoring"):
        timed = [(work.flops, seconds) for stage, work, seconds in done if classify(stage) == name]
        if timed:
            flops[name] = median(count / seconds for count, seconds in timed if count >= max(timed)[0] / 2)
    times: dict[str, list[float]] = {}
    for stage, _, seconds in done:
        times.setdefault(stage.kind, []).append(seconds)
    return MeasuredRates(flops, {kind: sum(values) / len(values) for kind, values in times.items()})


def measured_rates(stages: Sequence[Stage], configs: Mapping[str, Config], store: Store) -> MeasuredRates:
    """Return rates from the entries of these stages. Raises BadInput if no training is finished."""
    done = []
    for stage in stages:
        entry = store.find(stage)
        if entry and entry.record:
            config = configs[stage.key]
            resumed = entry.record.get("resumed_tokens", 0)
            done.append((stage, stage_work(stage, config, model_shape(config), resumed), entry.record["seconds"]))
    rates = calibrate(done)
    if "training" not in rates.flops:
        raise BadInput(
            f"CLUSTER=here: store={store.root} has no finished training of this sweep to measure by. "
            "Run the sweep for a while, or name a cluster."
        )
    return rates


# --- the stages of a sweep with their costs


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


def rows(cells: Sequence[Cell], done: set[str], rates: Rates, memories: Mapping[str, Memory]) -> list[Row]:
    """Return every stage of a sweep once, in the order of the plan.

    `done`: keys that are published. `memories`: by kind, for what trains.
    """
    configs, stages, costed = owners(cells), merged(cells), []
    previous = previous_stages(stages)
    continued = {before.key for before in previous.values()}
    for stage in stages:
        config, before = configs[stage.key], previous.get(stage.key)
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
