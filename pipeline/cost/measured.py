"""Rates of this machine, from finished stages of the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from common.errors import BadInput
from pipeline.config import Config
from pipeline.cost.model_shape import model_shape
from pipeline.cost.stage_work import Work, stage_work
from pipeline.stages.stage import STAGE_TYPES, Stage
from pipeline.store import Store


@dataclass(frozen=True)
class Measured:
    """flops: FLOP/s of training and of scoring, by class; mean: seconds of stages without FLOPs, by kind."""

    flops: Mapping[str, float]
    mean: Mapping[str, float]

    def seconds(self, stage: Stage, work: Work) -> float:
        rate = self.flops.get(classify(stage.kind))
        return work.flops / rate if rate and work.flops else self.mean.get(stage.kind, 0.0)

    def gpus(self, stage: Stage) -> int:
        return 0


def classify(kind: str) -> str:
    """Return the class of kinds that work at one rate: training, scoring, or the kind alone."""
    return {"train": "training", "score": "scoring"}.get(STAGE_TYPES[kind].resource, kind)


def calibrate(done: Sequence[tuple[Stage, Work, float]]) -> Measured:
    """Return rates from (stage, its work, its seconds).

    The larger stages of each class decide, by their median: start-up matters least for them.
    """
    flops: dict[str, float] = {}
    for name in ("training", "scoring"):
        timed = [(work.flops, seconds) for stage, work, seconds in done if classify(stage.kind) == name]
        if timed:
            flops[name] = median(count / seconds for count, seconds in timed if count >= max(timed)[0] / 2)
    times: dict[str, list[float]] = {}
    for stage, _, seconds in done:
        times.setdefault(stage.kind, []).append(seconds)
    return Measured(flops, {kind: sum(values) / len(values) for kind, values in times.items()})


def measure(stages: Sequence[Stage], configs: Mapping[str, Config], store: Store) -> Measured:
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
