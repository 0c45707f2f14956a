"""GPUs and clusters, and the speed that trainings reached on them.

A cluster has a name: `8xH100` is one node of eight GPUs, `4x8xH100` four of them. A finished training records its speed
in its stage.json; one of an older version has none and is skipped.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import BadInput, suggestion
from common.validation import read_json
from pipeline.config import Config
from pipeline.cost.shape import from_config_json, model_shape, training_flops
from pipeline.store import Entry, Store
from train.performance import Performance
from train.settings import MemorySaving, TrainingSettings

USABLE = 0.9  # share of a GPU's memory that a training may fill (assumed): the rest is CUDA's context and fragmentation
NVIDIA_NODE = 8  # GPUs of the nodes whose main memory is known


@dataclass(frozen=True)
class GPU:
    """A GPU. memory: bytes.

    half, fp32: peak FLOP/s, dense; half: of bf16 and fp16, or of fp16 alone where `bf16` is false. From NVIDIA's data
    sheets (the SXM form where there are several). host: bytes of main memory of NVIDIA's own node of eight; None: there
    is no such node. Of the data sheets of DGX H200 and H100 (2 TB), DGX A100 (640 GB of GPU memory: 2 TB; 320 GB: 1 TB)
    and DGX-1 with V100 (512 GB).
    """

    name: str
    memory: int
    half: float
    fp32: float
    host: int | None = None
    bf16: bool = True

    @property
    def usable(self) -> float:
        """Return bytes that a training may fill."""
        return USABLE * self.memory

    def peak(self, precision: str) -> float:
        """FLOP/s at a precision, `bf16`, `fp16` or `fp32`."""
        return self.fp32 if precision == "fp32" else self.half


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H200", 141 * 2**30, 989e12, 67e12, 2 * 10**12),
        GPU("H100", 80 * 2**30, 989e12, 67e12, 2 * 10**12),
        GPU("A100", 80 * 2**30, 312e12, 19.5e12, 2 * 10**12),
        GPU("A100-40GB", 40 * 2**30, 312e12, 19.5e12, 10**12),
        GPU("L40S", 48 * 2**30, 362e12, 91.6e12),
        GPU("RTX4090", 24 * 2**30, 165e12, 82.6e12),
        GPU("RTX3090", 24 * 2**30, 71e12, 35.6e12),
        GPU("V100", 32 * 2**30, 125e12, 15.7e12, 512 * 10**9, bf16=False),
        GPU("T4", 16 * 2**30, 65e12, 8.1e12, bf16=False),
    )
}


DRIVER_NAMES = {  # of the forms that GPUS has; others of the same name, such as `NVIDIA H100 PCIe`, are slower
    "H200": r"NVIDIA H200",
    "H100": r"NVIDIA H100 80GB HBM3",
    "A100": r"NVIDIA A100(-SXM4-80GB|-PCIE-80GB| 80GB PCIe)",
    "A100-40GB": r"(NVIDIA )?A100-(SXM4|PCIE)-40GB",
    "L40S": r"NVIDIA L40S",
    "RTX4090": r"NVIDIA GeForce RTX 4090",
    "RTX3090": r"NVIDIA GeForce RTX 3090",
    "V100": r"(NVIDIA )?Tesla V100-SXM2-32GB",
    "T4": r"(NVIDIA )?Tesla T4|NVIDIA T4",
}


def gpu_of_driver(name: str) -> GPU | None:
    """Return the GPU that the driver gives this name, such as `NVIDIA A100-SXM4-80GB`; None: it is not known here."""
    return next((GPUS[gpu] for gpu, pattern in DRIVER_NAMES.items() if re.fullmatch(pattern, name)), None)


@dataclass(frozen=True)
class Cluster:
    """Nodes with the same number of the same GPUs."""

    nodes: int
    per_node: int
    gpu: GPU

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node

    @property
    def host(self) -> int | None:
        """Return bytes of main memory of a node, if its kind is known."""
        return self.gpu.host if self.per_node == NVIDIA_NODE else None

    def __str__(self) -> str:
        return f"{f'{self.nodes}x' if self.nodes > 1 else ''}{self.per_node}x{self.gpu.name}"


def parse_cluster(text: str) -> Cluster:
    """Return a cluster from its name. Raises BadInput."""
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)x([A-Za-z]\w*(?:-\w+)?)", text)
    if match is None:
        raise BadInput(
            f"CLUSTER={text}: must be a number and a GPU, such as 8xH100, or 4x8xH100 for four nodes of eight, "
            "or `here`, for this machine."
        )
    by_name = {name.lower(): gpu for name, gpu in GPUS.items()}
    if match[3].lower() not in by_name:
        raise BadInput(f"CLUSTER={text}: no figures for the GPU {match[3]}. {suggestion(match[3], list(GPUS))}")
    return Cluster(int(match[1] or 1), int(match[2]), by_name[match[3].lower()])


def gpu_of_pytorch(device: str) -> GPU | None:
    """Return the GPU of a name that PyTorch gives, such as `NVIDIA A100-SXM4-40GB`; None if it is not in the table.

    A size in the name must be that of the table. PCIe cards of Hopper and laptops' GPUs have lower peaks.
    """
    words = re.split(r"[\s-]+", device.lower())
    pairs = {first + second for first, second in itertools.pairwise(words)}
    if "laptop" in words or ("pcie" in words and "h100" in words):
        return None
    sizes = [int(word[:-2]) for word in words if re.fullmatch(r"\d+gb", word)]
    alike = [gpu for gpu in GPUS.values() if gpu.name.lower().split("-")[0] in {*words, *pairs}]
    return next((gpu for gpu in alike if not sizes or sizes[0] == gpu.memory >> 30), None)


def training_mfu(measured: Performance, config_json: Path, settings: TrainingSettings, precision: str) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", appendix B): recomputed activations do not count.

    config_json: of the model that was trained. None if the device's peak is not known, or the model's FLOPs: of
    models that are not like Llama, and of mixtures of experts, which use a part of their weights for each token.
    """
    gpu, described = gpu_of_driver(measured.device), read_json(config_json)
    described |= described.get("text_config") or {}
    if gpu is None or any("expert" in key and value for key, value in described.items()):
        return None
    try:
        shape = from_config_json(config_json)
    except BadInput:
        return None
    of_a_token = training_flops(shape, settings.block_size, frozen=settings.lora is not None)
    return round(measured.tokens_per_second_per_device * of_a_token / gpu.peak(precision), 4)


LORA, PRECISION = "lora", "precision"  # settings of a training that decide its speed


@dataclass(frozen=True)
class Speed:
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


def recorded_speed(record: Mapping[str, Any]) -> Speed | None:
    """Return the performance in a record; None if it has none, or not such a one."""
    found, settings = record.get("performance"), record.get("settings") or {}
    if not isinstance(found, Mapping):
        return None
    try:
        mfu, peak = found.get("mfu"), found.get("peak_memory_bytes")
        read = Speed(
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


def comparable_speeds(store: Store, config: Config, gpu: GPU, kinds: Iterable[str]) -> dict[str, Speed]:
    """Return, for each of these kinds, the performance to plan by: of the same shape, precision and GPU, LoRA or not.

    One with the config's strategy comes first, then the one with the most tokens: start-up matters least for it.
    """
    shape = model_shape(config)
    best: dict[str, Speed] = {}
    for kind in kinds:
        found: list[Speed] = []
        for entry in store.entries(kind):
            read = recorded_speed(entry.record)
            if (
                read
                and gpu_of_pytorch(read.device) == gpu
                and _trains_alike(entry, config)
                and _shape_of(entry) == shape
            ):
                context = int(entry.record["settings"].get("block_size") or 0)
                rate = read.speed * training_flops(shape, context, config.train.lora is not None)
                found.append(Speed(**{**vars(read), "rate": rate}))
        if found:
            best[kind] = max(found, key=lambda each: (each.strategy == config.compute.strategy, each.tokens))
    return best


def _trains_alike(entry: Entry, config: Config) -> bool:
    """Return whether an entry was trained in the config's precision and dtypes, and with LoRA if the config is."""
    settings = entry.record["settings"]
    same_precision = settings.get(PRECISION, "fp32") == config.compute.precision
    saving = [settings.get(name, field.default) for name, field in MemorySaving.model_fields.items()]
    same_saving = saving == [getattr(config.train, name) for name in MemorySaving.model_fields]
    return same_precision and same_saving and (LORA in settings) == (config.train.lora is not None)


def _shape_of(entry: Entry) -> object:
    """Return the shape of an entry's model; None if it cannot be read."""
    try:
        return from_config_json(entry.path / "model" / "config.json")
    except (OSError, ValueError, BadInput):
        return None


def measured_mfu(read: Speed, gpu: GPU, precision: str) -> float:
    """Return the share of the peak FLOP/s that a training reached: as it was recorded, else from its tokens/s."""
    return read.mfu if read.mfu is not None else read.rate / gpu.peak(precision)


def speed_to_plan_by(found: Mapping[str, Speed], kind: str) -> Speed | None:
    """Return the performance for a kind of training: its own, else another's."""
    return found.get(kind) or next(iter(found.values()), None)


def recorded_speeds(records: Sequence[Mapping[str, Any]]) -> list[Speed]:
    """Return the performances of all records that have one, in their order."""
    return [read for record in records if (read := recorded_speed(record))]
