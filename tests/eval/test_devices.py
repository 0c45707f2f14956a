"""A model that is spread over devices. The devices are names of the CPU here; no GPU has run this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import BadInput
from eval import harness, loading, task_set
from pipeline import inputs
from tests.eval.conftest import tiny_model

NAMES = ["cpu:0", "cpu:1", "cpu:2"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_devices_get_shares_that_differ_by_a_layer(count: int, tied: bool) -> None:
    with torch.device("meta"):
        model = tiny_model(0, num_hidden_layers=11, tie_word_embeddings=tied)
    model.tie_weights()
    where = loading.even_split(model, NAMES[:count])
    sizes = dict.fromkeys(NAMES[:count], 0)
    for name, parameter in model.named_parameters():
        part = max((part for part in where if f"{name}.".startswith(f"{part}.") or part == ""), key=len)
        sizes[where[part]] += parameter.numel()
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert all(sizes.values()) and max(sizes.values()) - min(sizes.values()) <= 2 * layer
    layers = [where[f"model.layers.{number}"] for number in range(11)]
    assert layers == sorted(layers)  # what flows through the model passes each border once


def test_a_model_that_is_scored_on_two_gpus_is_spread_over_them(
    folders: tuple[Path, Path], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's own part is left out: it needs devices that differ."""
    seen: list[Any] = []
    monkeypatch.setattr(harness, "check_gpus", lambda *_: None)
    monkeypatch.setattr(
        "accelerate.dispatch_model", lambda model, where, main_device: seen.append((where, main_device))
    )
    model, tasks = tiny_model(0, num_hidden_layers=5), task_set.prepare(*folders)
    harness.evaluate(model, tokenizer, tasks, device="cuda", gpus=2)
    (where, main) = seen[0]
    assert main == "cuda:0" and set(where.values()) == {"cuda:0", "cuda:1"}


@pytest.mark.parametrize(
    ("device", "gpus", "seen", "message"),
    [
        ("cpu", 2, 8, "eval.gpus: 2 GPUs need device cuda, got cpu. Set eval.gpus=1"),
        (None, 2, 8, "eval.gpus: 2 GPUs need device cuda, got no device. Set eval.gpus=1"),
        ("cuda", 4, 2, "eval.gpus: only 2 GPUs are visible to this process, got 4. Set eval.gpus=2, or run"),
        ("cuda", 0, 2, "eval.gpus: must be 1 or more, got 0"),
    ],
)
def test_gpus_that_are_not_there_are_a_line(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, device: str | None, gpus: int, seen: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(BadInput, match=message):
        harness.evaluate(tiny_model(0), tokenizer, task_set.TaskSet({}), device=device, gpus=gpus)


def test_the_pipeline_rejects_them_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import sweep

    config = sweep.expand(("experiment=test", "eval.gpus=2"), multirun=False).configs[0]
    with pytest.raises(BadInput, match=r"^eval\.gpus=2: needs compute\.device=cuda, got cpu\. Set eval\.gpus=1\."):
        inputs.check_device(config.compute, config.eval.gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    on_gpu = config.compute.model_copy(update={"device": "cuda"})
    with pytest.raises(BadInput, match=r"^eval\.gpus=2: only 1 GPUs are visible\. Set eval\.gpus=1"):
        inputs.check_device(on_gpu, config.eval.gpus)
