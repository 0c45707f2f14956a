"""Rates of this machine, from stages of the sweep that are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from common.errors import BadInput
from pipeline.config import Config
from pipeline.cost import model_shape as shape
from pipeline.cost import stage_work as work
from pipeline.cost.stage_work import Work
from pipeline.graph import Stage
from pipeline.kinds import KINDS
from pipeline.store import Store


@dataclass(frozen=True)
class Measured:
    """flops: FLOP/s of training and of scoring, by class; mean: seconds of stages without FLOPs, by kind."""

    flops: Mapping[str, float]
    mean: Mapping[str, float]

    def seconds(self, stage: Stage, does: Work) -> float:
        rate = self.flops.get(sort(stage.kind))
        return does.flops / rate if rate and does.flops else self.mean.get(stage.kind, 0.0)

    def gpus(self, stage: Stage) -> int:
        return 0


def sort(kind: str) -> str:
    """Kinds that work at one rate."""
    return {"train": "training", "score": "scoring"}.get(KINDS[kind].work, kind)


def calibrate(done: Sequence[tuple[Stage, Work, float]]) -> Measured:
    """Rates from (stage, its work, seconds it took).

    The larger ones of each class decide, by their median: start-up weighs least on them.
    """
    flops: dict[str, float] = {}
    for kind in ("training", "scoring"):
        of = [(does.flops, seconds) for stage, does, seconds in done if sort(stage.kind) == kind]
        if of:
            flops[kind] = median(work / seconds for work, seconds in of if work >= max(of)[0] / 2)
    times: dict[str, list[float]] = {}
    for stage, _, seconds in done:
        times.setdefault(stage.kind, []).append(seconds)
    return Measured(flops, {kind: sum(values) / len(values) for kind, values in times.items()})


def of_store(stages: Sequence[Stage], configs: Mapping[str, Config], store: Store) -> Measured:
    """Rates from the entries of these stages. Raises BadInput where no training is done yet."""
    done = []
    for stage in stages:
        entry = store.find(stage)
        if entry and entry.record:
            config = configs[stage.key]
            done.append(
                (
                    stage,
                    work.of(stage, config, shape.of(config), entry.record.get("resumed_tokens", 0)),
                    entry.record["seconds"],
                )
            )
    found = calibrate(done)
    if "training" not in found.flops:
        raise BadInput(
            f"CLUSTER=here: store={store.root} holds no finished training of this sweep to measure by; "
            "run it for a while, or name a cluster"
        )
    return found
