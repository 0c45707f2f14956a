"""Merging on a CUDA GPU: the tensors of the CPU, but for the order of additions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import merge
from tests.merge.conftest import make_folders, recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "ties_sv"])
def test_a_merge_on_the_device_is_that_of_the_cpu(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    slack = {"slack": 1.0, "protect": ["sft"]} if method == "ties_sv" else {}
    wanted = recipe(make_folders(tmp_path, dtype), method, **slack)
    here, there = (merge.load(wanted, device).state_dict() for device in ("cpu", "cuda"))
    close = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    for name, tensor in here.items():
        assert there[name].device.type == "cuda"
        torch.testing.assert_close(there[name].cpu(), tensor, rtol=close, atol=close)
