"""Speed and memory of trainings, as their stage.json records them.

Input: records of stages. A training of an older version has no `performance` and is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import BadInput
from pipeline.config import Config
from pipeline.cost import flops
from pipeline.cost.hardware import GPU, named
from pipeline.cost.model_shape import from_config_json, model_shape
from pipeline.stages import STAGE_TYPES
from pipeline.store import Entry, Store

LORA, PRECISION = "lora", "precision"  # settings of a training that decide its speed


@dataclass(frozen=True)
class Performance:
    """The performance of one training.

    device: its name by PyTorch. speed: tokens/s of each of the `devices`. mfu: model FLOPs utilisation, None if the
    device's peak is not known. peak: bytes of a device. stage: kind and slug. strategy: as compute.strategy has it.
    tokens: that it trained on. rate: model FLOP/s of a device.
    """

    device: str
    devices: int
    speed: float
    mfu: float | None
    peak: int | None
    stage: str
    kind: str
    strategy: str
    tokens: float
    rate: float = 0.0

    def __str__(self) -> str:
        return f"{self.stage} on {self.devices} x {self.device}"


def of(record: Mapping[str, Any]) -> Performance | None:
    """Return the performance in a record; None if it has none, or not such a one."""
    found, settings = record.get("performance"), record.get("settings") or {}
    if not isinstance(found, Mapping):
        return None
    try:
        mfu, peak = found.get("mfu"), found.get("peak_memory_bytes")
        read = Performance(
            str(found["device"]),
            int(found["devices"]),
            float(found["tokens_per_second_per_device"]),
            None if mfu is None else float(mfu),
            None if peak is None else int(peak),
            f"{record['kind']} {record['slug']}",
            str(record["kind"]),
            str((record.get("launched") or {}).get("strategy", "")),
            float(settings.get("tokens") or 1e6 * record.get("amount", 0)) - float(record.get("resumed_tokens") or 0),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return read if read.devices > 0 and read.speed > 0 else None


def alike(store: Store, config: Config, gpu: GPU) -> dict[str, Performance]:
    """Return, for each kind of training, the performance to plan by: of the same shape, precision and GPU, LoRA or
    not.

    One with the config's strategy comes first, then the one with the most tokens: start-up matters least for it.
    """
    shape = model_shape(config)
    best: dict[str, Performance] = {}
    for kind in (kind.name for kind in STAGE_TYPES.values() if kind.trained):
        found: list[Performance] = []
        for entry in store.entries(kind):
            read = of(entry.record)
            if read and named(read.device) == gpu and _trains_alike(entry, config) and _shape_of(entry) == shape:
                context = int(entry.record["settings"].get("block_size") or 0)
                rate = read.speed * flops.training(shape, context, config.train.lora is not None)
                found.append(Performance(**{**vars(read), "rate": rate}))
        if found:
            best[kind] = max(found, key=lambda each: (each.strategy == config.compute.strategy, each.tokens))
    return best


def _trains_alike(entry: Entry, config: Config) -> bool:
    """Return whether an entry was trained in the config's precision, and with LoRA if the config is."""
    settings = entry.record["settings"]
    same_precision = settings.get(PRECISION, "fp32") == config.compute.precision
    return same_precision and (LORA in settings) == (config.train.lora is not None)


def _shape_of(entry: Entry) -> object:
    """Return the shape of an entry's model; None if it cannot be read."""
    try:
        return from_config_json(entry.path / "model" / "config.json")
    except (OSError, ValueError, BadInput):
        return None


def measured_mfu(read: Performance, gpu: GPU, precision: str) -> float:
    """Return the share of the peak FLOP/s that a training reached: as it was recorded, else from its tokens/s."""
    return read.mfu if read.mfu is not None else read.rate / gpu.peak(precision)


def to_plan_by(found: Mapping[str, Performance], kind: str) -> Performance | None:
    """Return the performance for a kind of training: its own, else another's."""
    return found.get(kind) or next(iter(found.values()), None)


def listed(records: Sequence[Mapping[str, Any]]) -> list[Performance]:
    """Return the performances of all records that have one, in their order."""
    return [read for record in records if (read := of(record))]
