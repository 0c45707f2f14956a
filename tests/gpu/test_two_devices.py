"""What needs two CUDA devices: two processes train what one does; the second device gives the first one's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from eval import harness, task_set
from merge import Recipe
from tests.gpu import steps
from tests.gpu.prepared import Prepared, prepare, settings_of
from train import trainer
from train.settings import Compute

FOUND = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(FOUND < 2, reason=f"needs two CUDA GPUs, found {FOUND} on this machine"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def made(folder: Path) -> Prepared:
    return prepare(folder, "cuda")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_two_devices_train_what_one_does(strategy: str, folder: Path) -> None:
    try:
        found = steps.two_processes("cuda", folder, strategy)
    except steps.Missing as missing:
        pytest.skip(str(missing))
    assert found["largest_difference"] < steps.CLOSE


def test_one_process_trains_on_one_device_while_two_are_visible(made: Prepared, tmp_path: Path) -> None:
    compute = Compute(device="cuda", micro_batch=1)
    facts = trainer.train(
        made.model, made.folder / "ct_blocks", settings_of(made), tmp_path / "out", work=tmp_path / "w", compute=compute
    )
    assert facts["world_size"] == 1 and facts["wrapper"] == "LlamaForCausalLM"


def test_the_second_device_scores_and_merges_as_the_first(made: Prepared) -> None:
    tasks = task_set.prepare(made.folder / "tasks")
    recipe = Recipe.from_dict(made.ties(made.moved(), 0.5))
    scores: list[Any] = []
    merged: list[dict[str, torch.Tensor]] = []
    for device in ("cuda:0", "cuda:1"):
        model = merge.load(recipe, device)
        assert {tensor.device for tensor in model.parameters()} == {torch.device(device)}
        merged.append({name: tensor.cpu() for name, tensor in model.state_dict().items()})
        records = harness.evaluate(model, made.tokenizer(), tasks, device=device).records
        scores.append({(row["task"], row["metric"]): row["value"] for row in records})
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    for name, tensor in merged[0].items():
        torch.testing.assert_close(merged[1][name], tensor, rtol=1e-6, atol=1e-6)
