"""Speed and memory of a training, as numbers per device.

Importing this module imports no torch.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Performance:
    """Measurements of a training, of a resumed one since it was resumed."""

    device: str  # the name of the GPU or the CPU's model
    devices: int  # of all nodes; one of a process, also on CPUs
    tokens_per_second_per_device: float  # padding included; without the first step, and without saving
    mfu: float | None  # model FLOPs per second, of the device's peak in this precision; None: one of them is not known
    peak_memory_bytes: int  # of the device that held most: that torch allocated on a GPU, or the process in RAM


class Meter:
    """A timer of optimizer steps, without the first, which warms up, and without the time for saving."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda" and torch_has_cuda()
        self.steps, self.seconds = 0, 0.0  # those that are counted
        self.warm_up: float | None = None  # seconds of the first step, once it has ended
        self.since = 0.0

    def begin(self) -> None:
        """Begin to measure, before the first step."""
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        self.since = time.monotonic()

    def end_step(self, saves: bool) -> None:
        """Count a step. saves: whether the training saves its state after it, and calls `end_save`."""
        if self.cuda and (saves or self.warm_up is None):
            import torch

            torch.cuda.synchronize()  # the step was queued; without this its time would count as that of saving
        now = time.monotonic()
        if self.warm_up is None:
            self.warm_up = now - self.since
        else:
            self.steps, self.seconds = self.steps + 1, self.seconds + now - self.since
        self.since = now

    def end_save(self) -> None:
        """Leave out the time since the last step."""
        self.since = time.monotonic()

    def tokens_per_second(self, batch_tokens: int) -> float | None:
        """Return tokens per second of all devices; of the first step, if it is the only one; None without steps."""
        if self.warm_up is None:
            return None
        steps, seconds = (self.steps, self.seconds) if self.steps else (1, self.warm_up)
        return steps * batch_tokens / max(seconds, 1e-9)

    def peak_memory(self) -> int:
        """Return bytes that this process has held at most since `begin`; on a CPU, since the process began."""
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return resident if sys.platform == "darwin" else resident * 1024

    def device_name(self) -> str:
        """Return the name of this process's GPU, as the driver gives it, or of the CPU."""
        if self.cuda:
            import torch

            return str(torch.cuda.get_device_name())
        return cpu_name()


def torch_has_cuda() -> bool:
    """Return whether torch finds a GPU."""
    import torch

    return torch.cuda.is_available()


def cpu_name() -> str:
    """Return the model of this machine's CPU, as Linux gives it, or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
