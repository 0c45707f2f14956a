"""The plan with its costs, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import BadInput
from common.units import counted, format_tokens
from pipeline.config import Config
from pipeline.cost import estimate, fit, measured
from pipeline.cost.estimate import Rates, Row
from pipeline.cost.hardware import Cluster, parse
from pipeline.cost.memory import Memory
from pipeline.cost.model_shape import model_shape
from pipeline.kinds import KINDS
from pipeline.plan import Cell, merged
from pipeline.run.console import duration
from pipeline.store import Store

HERE = "here"


def report(cells: Sequence[Cell], waiting: set[str], name: str, mfu: float | None = None) -> tuple[str, str | None]:
    """(the table of a sweep on a cluster, why it cannot run there or None).

    `waiting`: keys of stages that are not done. `name`: as CLUSTER= has it.
    """
    config, refusal = cells[0].config, None
    stages = merged(cells)
    done = {stage.key for stage in stages} - waiting
    memories: dict[str, Memory] = {}
    rates: Rates
    if name == HERE:
        owners = {stage.key: cell.config for cell in reversed(cells) for stage in cell.stages}
        rates = measured.measure(stages, owners, Store(Path(config.store)))
        finished = sum(KINDS[stage.kind].trained for stage in stages if stage.key in done)
        head = f"on this machine, measured on {finished} finished trainings"
    else:
        cluster = parse(name)
        config = fit.on_cluster(config, cluster)
        trained = any(KINDS[stage.kind].trained for stage in stages)
        try:
            fit.check(config, cluster, trained)
        except BadInput as error:
            refusal = str(error)
        if trained and (refusal is None or "cannot be shared" not in refusal):
            memories = estimate.training_memory(config)
        rates = estimate.OnCluster(cluster, config, mfu or estimate.MFU)
        head = heading(config, cluster, mfu)
        cells = [replace(cell, config=fit.on_cluster(cell.config, cluster)) for cell in cells]
    rows = estimate.rows(cells, done, rates, memories)
    given = estimate.given_bytes(cells)
    parts = [head, *lines(rows), *footer(cells, rows, given, memories, None if name == HERE else cluster)]
    return "\n".join(parts), refusal


def heading(config: Config, cluster: Cluster, mfu: float | None) -> str:
    """What the numbers stand on."""
    shape, compute = model_shape(config), config.compute
    utilisation = f"{mfu} as given" if mfu else f"{estimate.MFU} assumed"
    passes = "recomputation on" if compute.gradient_checkpointing else "recomputation off"
    return (
        f"{config.model.name}: {shape.parameters:,} parameters; CLUSTER={cluster}: "
        f"compute.strategy={compute.strategy}, {compute.precision}, "
        f"{compute.nodes} x {compute.processes} processes, {passes}\n"
        f"utilisation in training {utilisation}, in scoring {estimate.SCORING_MFU} assumed"
    )


def lines(rows: Sequence[Row]) -> list[str]:
    """A line a stage."""
    width = max(len(row.stage.slug) for row in rows) + 2
    head = (
        f"{'kind':13}{'stage':{width}}{'cells':>5}  {'state':8}{'tokens':>9}"
        f"{'FLOPs':>10}{'time':>12}{'GPU-hours':>11}{'GiB/GPU':>9}{'disk':>10}"
    )
    return [head, *(_line(row, width) for row in rows)]


def _line(row: Row, width: int) -> str:
    """A stage; what does not apply to it is left blank."""
    state = "done" if row.done else "to run"
    flops = f"{row.work.flops:.2e}" if row.work.flops else ""
    hours = f"{row.gpu_hours:,.1f}" if row.gpus else ""
    gib = f"{row.memory.total / 2**30:.1f}" if row.memory else ""
    return (
        f"{row.stage.kind:13}{row.stage.slug:{width}}{row.cells:5}  {state:8}{short(row.work.tokens):>9}"
        f"{flops:>10}{duration(row.seconds):>12}{hours:>11}{gib:>9}{size(row.work.written):>10}"
    )


def footer(
    cells: Sequence[Cell], rows: Sequence[Row], given: float, memories: dict[str, Memory], cluster: Cluster | None
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
    for kind, memory in memories.items():
        names = ("parameters", "gradients", "optimizer", "activations")
        parts = ", ".join(f"{name} {getattr(memory, name) / 2**30:.1f}" for name in names)
        host = f"; {memory.host / 2**30:.0f} GiB of a node's main memory" if memory.host else ""
        summary.append(f"  memory of a GPU in {kind}: {parts}, in all {memory.total / 2**30:.1f} GiB{host}")
    length, chain = estimate.critical_path(rows)
    summary.append(
        f"disk at its peak: {size(estimate.disk_peak(rows, given))}"
        + (f", of which {size(given)} downloaded checkpoints" if given else "")
    )
    summary.append(
        f"critical path: {length / 3600:,.1f} h, {' > '.join(str(stage) for stage in chain) or 'nothing to run'}"
    )
    if cluster:
        hours = sum(row.gpu_hours for row in waiting)
        summary.append(
            f"in all {hours:,.0f} GPU-hours; on {cluster}, which shares them, "
            f"at least {max(length / 3600, hours / cluster.gpus):,.0f} h"
        )
    else:
        summary.append(f"in all {sum(row.seconds for row in waiting) / 3600:,.2f} h, one stage after the other")
    return summary


def short(tokens: float) -> str:
    """A number of tokens in three digits."""
    if not tokens:
        return ""
    rounded = float(f"{tokens:.3g}")
    return format_tokens(int(rounded)) if rounded >= 1000 else f"{rounded:.0f}"


def size(count: float) -> str:
    """Bytes, for people."""
    for unit, worth in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= worth:
            return f"{count / worth:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
