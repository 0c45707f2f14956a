"""Clusters by name: `8xH100` is one node of eight GPUs, `4x8xH100` four of them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from common.errors import BadInput, suggestion

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


def of_device(name: str) -> GPU | None:
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


def parse(text: str) -> Cluster:
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


def named(device: str) -> GPU | None:
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
