"""Clusters by name: `8xH100` is one node of eight GPUs, `4x8xH100` four of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.errors import BadInput
from pipeline.config import suggestion

USABLE = 0.9  # share of a GPU's memory that a training may fill (assumed): the rest is CUDA's context and fragmentation


@dataclass(frozen=True)
class GPU:
    """memory: bytes.

    bf16, fp32: peak FLOP/s, dense. From NVIDIA's data sheets (the SXM form where there are several).
    """

    name: str
    memory: int
    bf16: float
    fp32: float

    @property
    def usable(self) -> float:
        """Bytes that a training may fill."""
        return USABLE * self.memory

    def peak(self, precision: str) -> float:
        """FLOP/s at a precision: `fp32`, or `bf16` and `fp16`, which are equally fast."""
        return self.fp32 if precision == "fp32" else self.bf16


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H200", 141 * 2**30, 989e12, 67e12),
        GPU("H100", 80 * 2**30, 989e12, 67e12),
        GPU("A100", 80 * 2**30, 312e12, 19.5e12),
        GPU("A100-40GB", 40 * 2**30, 312e12, 19.5e12),
        GPU("L40S", 48 * 2**30, 362e12, 91.6e12),
        GPU("RTX4090", 24 * 2**30, 165e12, 82.6e12),
        GPU("RTX3090", 24 * 2**30, 71e12, 35.6e12),
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
}


def of_device(name: str) -> GPU | None:
    """The GPU that the driver gives this name, such as `NVIDIA A100-SXM4-80GB`; None: it is not known here."""
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

    def __str__(self) -> str:
        return f"{f'{self.nodes}x' if self.nodes > 1 else ''}{self.per_node}x{self.gpu.name}"


def parse(text: str) -> Cluster:
    """A cluster from its name. Raises BadInput."""
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)x([A-Za-z]\w*(?:-\w+)?)", text)
    if match is None:
        raise BadInput(
            f"CLUSTER={text}: say how many of which GPU, such as 8xH100, or 4x8xH100 for four nodes of eight; "
            "or `here`, for this machine"
        )
    by_name = {name.lower(): gpu for name, gpu in GPUS.items()}
    if match[3].lower() not in by_name:
        raise BadInput(f"CLUSTER={text}: {match[3]} is not known here; {suggestion(match[3], list(GPUS))}")
    return Cluster(int(match[1] or 1), int(match[2]), by_name[match[3].lower()])
