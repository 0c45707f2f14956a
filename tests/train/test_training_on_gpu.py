"""Training on a CUDA GPU: near the CPU's in float32, chained budgets equal to one run, bf16 and flash attention."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from train import base_model, trainer
from train.settings import BaseModelSettings, Compute, TrainingSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def prepared(corpus_dir: Path, recipe: BaseModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    base_model.prepare(corpus_dir, recipe, folder)
    return folder


def run(
    prepared: Path, training: TrainingSettings, out: Path, tokens: int = 1024, state: Path | None = None, **compute: Any
) -> Weights:
    options = Compute(**{"device": "cuda", "threads": 1, **compute})
    settings = training.replace(tokens=tokens)
    trainer.train(
        prepared / "model", prepared / "blocks", settings, out / "out", work=out / "work", save_every_tokens=512,
        resume_state=state, compute=options,
    )  # fmt: skip
    return load_file(out / "out" / "model" / "model.safetensors")


def apart(first: Weights, second: Weights) -> float:
    return max(float((tensor - second[name]).abs().max()) for name, tensor in first.items())


def test_float32_is_near_the_cpu(prepared: Path, training: TrainingSettings, tmp_path: Path) -> None:
    here = run(prepared, training, tmp_path / "cpu", device="cpu")
    assert apart(run(prepared, training, tmp_path / "gpu"), here) < 1e-2


def test_a_chain_of_budgets_equals_one_run(prepared: Path, training: TrainingSettings, tmp_path: Path) -> None:
    whole = run(prepared, training, tmp_path / "whole", 2048)
    run(prepared, training, tmp_path / "half", 1024)
    assert apart(run(prepared, training, tmp_path / "rest", 2048, tmp_path / "half" / "out" / "state"), whole) == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_learn(precision: str, prepared: Path, training: TrainingSettings, tmp_path: Path) -> None:
    full = run(prepared, training, tmp_path / "fp32")
    assert 0 < apart(run(prepared, training.replace(precision=precision), tmp_path / precision), full) < 0.1


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_flash_attention_is_near_sdpa(prepared: Path, training: TrainingSettings, tmp_path: Path) -> None:
    bf16 = training.replace(precision="bf16")
    ours = run(prepared, bf16, tmp_path / "sdpa")
    flash = run(prepared, bf16, tmp_path / "flash", attention="flash_attention_2")
    assert apart(flash, ours) < 0.1
