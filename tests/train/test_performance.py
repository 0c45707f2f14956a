"""What a training measures of itself: speed without warm-up and saving, and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from train import performance
from train.performance import Meter


def test_the_first_step_and_saving_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 150.0, 152.0, 154.0, 254.0, 256.0, 258.0])
    monkeypatch.setattr(performance.time, "monotonic", lambda: next(clock))
    meter = Meter("cpu")
    assert meter.tokens_per_second(1000) is None, "no step was done"
    meter.begin()  # at 100
    meter.end_step(saves=False)  # at 150: the first
    assert meter.tokens_per_second(1000) == pytest.approx(1000 / 50), "of the only step, if there is no other"
    meter.end_step(saves=False)  # at 152
    meter.end_step(saves=True)  # at 154
    meter.end_save()  # at 254
    meter.end_step(saves=False)  # at 256
    meter.end_step(saves=False)  # at 258
    assert meter.tokens_per_second(1000) == pytest.approx(4 * 1000 / 8)


def test_memory_and_name_are_those_of_this_process_and_machine() -> None:
    meter = Meter("cpu")
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    assert meter.peak_memory() == pytest.approx(int(held.split()[1]) * 1024, rel=0.05)
    assert meter.device_name() == performance.cpu_name() != ""
