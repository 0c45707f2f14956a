"""Tables for people: the plan with its costs, and which model sizes train on which GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import BadInput
from common.units import counted, duration, format_tokens
from pipeline.config import Compute, Config
from pipeline.config.models import ModelShape
from pipeline.cost import estimate, hardware, memory
from pipeline.cost.estimate import Rates, Row
from pipeline.cost.hardware import USABLE, Cluster, Speed, parse_cluster
from pipeline.cost.memory import Memory
from pipeline.cost.shape import all_weights, model_shape, with_lora
from pipeline.stages import STAGE_TYPES
from pipeline.stages.cell import Cell, merged, owners
from pipeline.store import Store
from train.memory_saving import changed
from train.settings import LoraSettings, MemorySaving, Precision

HERE = "here"


def report(
    cells: Sequence[Cell], waiting: set[str], name: str, mfu: float | None = None, one_by_one: bool = False
) -> tuple[str, str | None]:
    """Return (the table of a sweep on a cluster, the reason why it cannot run there or None).

    `waiting`: keys of unfinished stages. `name`: as in CLUSTER=. `one_by_one`: launcher=local, where no two stages
    share the GPUs.
    """
    config, refusal = cells[0].config, None
    stages = merged(cells)
    done = {stage.key for stage in stages} - waiting
    memories: dict[str, Memory] = {}
    finished: Mapping[str, Speed] = {}
    rates: Rates
    if name == HERE:
        rates = estimate.measured_rates(stages, owners(cells), Store(Path(config.store)))
        trainings = sum(stage.type.trained for stage in stages if stage.key in done)
        head = f"on this machine, measured on {counted(trainings, 'finished training')}"
    else:
        cluster = parse_cluster(name)
        config = memory.on_cluster(config, cluster)
        trained = any(stage.type.trained for stage in stages)
        try:
            memory.check_fit(config, cluster, trained)
        except BadInput as error:
            refusal = str(error)
        if trained and (refusal is None or "cannot be shared" not in refusal):
            memories = memory.memory_of_trainings(config)
        kinds = [kind.name for kind in STAGE_TYPES.values() if kind.trained]
        finished = hardware.comparable_speeds(Store(Path(config.store)), config, cluster.gpu, kinds)
        rates = estimate.ClusterRates(cluster, config, mfu or estimate.MFU, {} if mfu else finished)
        head = heading(config, cluster, mfu, finished)
        cells = [on_cluster(cell, cluster) for cell in cells]
    rows = estimate.rows(cells, done, rates, memories)
    given = estimate.given_bytes(cells)
    where = None if name == HERE else cluster
    parts = [head, *lines(rows), *footer(cells, rows, given, memories, where, finished, one_by_one)]
    return "\n".join(parts), refusal


def on_cluster(cell: Cell, cluster: Cluster) -> Cell:
    """Return a cell and its variants with as many processes as the cluster has GPUs."""
    variants = {name: on_cluster(variant, cluster) for name, variant in cell.variants.items()}
    return replace(cell, config=memory.on_cluster(cell.config, cluster), variants=variants)


def heading(config: Config, cluster: Cluster, mfu: float | None, finished: Mapping[str, Speed]) -> str:
    """Describe the assumptions behind the numbers."""
    shape, compute = model_shape(config), config.compute
    utilisation = f"{mfu} as given" if mfu else f"{estimate.MFU} assumed"
    if finished and not mfu:
        utilisation = "; ".join(
            f"{hardware.measured_mfu(each, cluster.gpu, compute.precision):.2f} measured "
            f"({each.speed:,.0f} tokens/s a GPU: {each})"
            for each in finished.values()
        )
    passes = "recomputation on" if compute.gradient_checkpointing else "recomputation off"
    saving = "".join(f", {name} {getattr(config.train, name)}" for name in changed(config.train))
    return (
        f"{config.model.name}: {shape.parameters:,} parameters; CLUSTER={cluster}: "
        f"compute.strategy={compute.strategy}, {compute.precision}, "
        f"{compute.nodes} x {compute.processes} processes, {passes}{saving}\n"
        f"utilisation in training {utilisation}, in scoring {estimate.SCORING_MFU} assumed"
    )


def lines(rows: Sequence[Row]) -> list[str]:
    """Return one line per stage."""
    width = max(len(row.stage.slug) for row in rows) + 2
    head = (
        f"{'kind':13}{'stage':{width}}{'cells':>5}  {'state':8}{'tokens':>9}"
        f"{'FLOPs':>10}{'time':>12}{'GPU-hours':>11}{'GiB/GPU':>9}{'disk':>10}"
    )
    return [head, *(_line(row, width) for row in rows)]


def _line(row: Row, width: int) -> str:
    """Return a stage; what does not apply to it is left blank."""
    state = "done" if row.done else "to run"
    flops = f"{row.work.flops:.2e}" if row.work.flops else ""
    hours = f"{row.gpu_hours:,.1f}" if row.gpus else ""
    gib = f"{row.memory.total / 2**30:.1f}" if row.memory else ""
    return (
        f"{row.stage.kind:13}{row.stage.slug:{width}}{row.cells:5}  {state:8}{short(row.work.tokens):>9}"
        f"{flops:>10}{duration(row.seconds):>12}{hours:>11}{gib:>9}{size(row.work.written):>10}"
    )


def footer(
    cells: Sequence[Cell],
    rows: Sequence[Row],
    given: float,
    memories: dict[str, Memory],
    cluster: Cluster | None,
    finished: Mapping[str, Speed],
    one_by_one: bool = False,
) -> list[str]:
    """Sums: by kind, memory by part, disk at its peak, the longest way."""
    waiting = [row for row in rows if not row.done]
    size_of_sweep = f"{counted(len(cells), 'cell')}, {counted(len(rows), 'stage')}"
    summary = [f"{size_of_sweep}: {len(rows) - len(waiting)} done, {len(waiting)} to run"]
    for kind in dict.fromkeys(row.stage.kind for row in rows):
        to_run = [row for row in waiting if row.stage.kind == kind]
        if to_run:
            tokens = short(sum(row.work.tokens for row in to_run))
            flops = sum(row.work.flops for row in to_run)
            seconds = duration(sum(row.seconds for row in to_run))
            hours = sum(row.gpu_hours for row in to_run)
            summary.append(
                f"  {kind:13}{len(to_run):4} to run {tokens:>9} tokens "
                f"{flops:10.2e} FLOPs {seconds:>12} {hours:12,.1f} GPU-hours"
            )
    summary += memory_lines(cells[0].config, memories, cluster, finished) if cluster else []
    length, chain = estimate.critical_path(rows)
    summary.append(
        f"disk at its peak: {size(estimate.disk_peak(rows, given))}"
        + (f", of which {size(given)} downloaded checkpoints" if given else "")
    )
    summary.append(
        f"critical path: {length / 3600:,.1f} h, {' > '.join(str(stage) for stage in chain) or 'nothing to run'}"
    )
    hours = sum(row.gpu_hours for row in waiting)
    if cluster and one_by_one:
        alone = sum(row.seconds for row in waiting) / 3600
        summary.append(
            f"in all {hours:,.0f} GPU-hours; on {cluster}, one stage after the other (launcher=local), "
            f"at least {alone:,.0f} h"
        )
    elif cluster:
        summary.append(
            f"in all {hours:,.0f} GPU-hours; on {cluster}, which shares them, "
            f"at least {max(length / 3600, hours / cluster.gpus):,.0f} h"
        )
    else:
        summary.append(f"in all {sum(row.seconds for row in waiting) / 3600:,.2f} h, one stage after the other")
    return summary


PARTS = ("parameters", "copies", "gradients", "optimizer", "buffers", "activations", "logits")


def memory_lines(
    config: Config, memories: Mapping[str, Memory], cluster: Cluster, finished: Mapping[str, Speed]
) -> list[str]:
    """Memory of a GPU and of a node: a line for each kind of training, for scoring and for what a node needs.

    A measured peak is next to the planned one, with what it was measured on.
    """
    listed = []
    for kind, held in memories.items():
        parts = ", ".join(f"{name} {getattr(held, name) / 2**30:.1f}" for name in PARTS if getattr(held, name))
        known = finished.get(kind)
        peak = f", measured {known.peak / 2**30:.1f} GiB ({known}, {known.strategy})" if known and known.peak else ""
        listed.append(f"  memory of a GPU in {kind}: {parts}; at the peak {held.total / 2**30:.1f} GiB{peak}")
    scored = memory.needed_to_score(config)
    listed.append(f"  memory of a GPU in scoring and tuning: {scored / 2**30:.1f} GiB")
    at_once = max(1, cluster.per_node // getattr(config.eval, "gpus", 1))
    needs = memory.node_memory(config, memories, at_once)
    parts = ", ".join(f"{what} {bytes_ / 2**30:.0f}" for what, bytes_ in needs.items())
    has = f"it has {cluster.host / 2**30:.0f} GiB" if cluster.host else "how much it has is not known here"
    listed.append(f"  main memory of a node: {parts} GiB ({at_once} checkpoints scored at once); {has}")
    warning = memory.host_warning(needs, cluster)
    return [*listed, *([warning] if warning else [])]


def short(tokens: float) -> str:
    """Return a number of tokens in three digits."""
    if not tokens:
        return ""
    rounded = float(f"{tokens:.3g}")
    return format_tokens(int(rounded)) if rounded >= 1000 else f"{rounded:.0f}"


def size(count: float) -> str:
    """Return bytes, for people."""
    for unit, worth in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= worth:
            return f"{count / worth:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


# --- `slackmerge plan --memory-table`

TABLE_SHAPES = {  # by their config.json
    "1B (Llama-3.2-1B)": ModelShape(
        vocabulary=128256, hidden=2048, layers=16, heads=32, kv_heads=8, feed_forward=8192, tied=True
    ),
    "3B (Llama-3.2-3B)": ModelShape(
        vocabulary=128256, hidden=3072, layers=28, heads=24, kv_heads=8, feed_forward=8192, tied=True
    ),
    "7B (Llama-2-7B)": ModelShape(
        vocabulary=32000, hidden=4096, layers=32, heads=32, kv_heads=32, feed_forward=11008, tied=False
    ),
}
TABLE_METHODS: dict[str, tuple[Precision, bool, MemorySaving]] = {  # precision, LoRA, dtypes
    "fp32": ("fp32", False, MemorySaving()),
    "bf16": ("bf16", False, MemorySaving()),
    "bf16, 8-bit AdamW": ("bf16", False, MemorySaving(optimizer="adamw_8bit")),
    "LoRA": ("bf16", True, MemorySaving()),
    "LoRA, bfloat16 base": ("bf16", True, MemorySaving(base_dtype="bfloat16")),
    "LoRA, nf4 base": ("bf16", True, MemorySaving(base_dtype="nf4")),
    "LoRA, nf4 base, 8-bit AdamW": ("bf16", True, MemorySaving(base_dtype="nf4", optimizer="adamw_8bit")),
}
GIGABYTES = (16, 24, 40, 80)
BLOCK, PASSES = 2048, 2
LORA = LoraSettings(rank=64, alpha=128, dropout=0.0, targets="all-linear")  # conf/train/lora.yaml


def single_gpu_memory(shape: ModelShape, precision: Precision, lora: bool, saving: MemorySaving) -> float:
    """Return bytes of the one GPU that trains: one block in a pass, several passes a step, activations recomputed."""
    compute = Compute(device="cuda", precision=precision, gradient_checkpointing=True, micro_batch=1)
    whole = replace(all_weights(shape), saving=saving)
    trained = with_lora(shape, LORA, saving) if lora else whole
    return memory.training_memory(shape, compute, PASSES * BLOCK, BLOCK, trained).total


def memory_rows() -> Iterator[tuple[str, str, float]]:
    """Return rows of (model, method, bytes per GPU)."""
    for name, shape in TABLE_SHAPES.items():
        for method, how in TABLE_METHODS.items():
            yield name, method, single_gpu_memory(shape, *how)


def memory_table() -> str:
    """Return the table; a GPU's memory counts as in the plan, to the share that a training may fill."""
    lines = [
        f"| model | trained | needs, GiB | {' | '.join(f'{size} GB' for size in GIGABYTES)} |",
        f"|---|---|---|{'---|' * len(GIGABYTES)}",
    ]
    for name, method, count in memory_rows():
        fits = ("yes" if count <= USABLE * size * 2**30 else "no" for size in GIGABYTES)
        lines.append(f"| {name} | {method} | {count / 2**30:.1f} | {' | '.join(fits)} |")
    return "\n".join(lines)
