"""Scoring on a CUDA GPU: the numbers of the CPU, whatever the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eval import harness, task_set
from tests.eval.conftest import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")]


def scored(tokenizer: Any, folders: tuple[Path, Path], **how: Any) -> dict[tuple[str, str], float]:
    tasks = task_set.prepare(*folders)
    scores = harness.evaluate(tiny_model(0), tokenizer, tasks, **how)
    return {(row["task"], row["metric"]): row["value"] for row in scores.records}


@pytest.mark.parametrize("batch_tokens", [None, 64, 100_000])
def test_scores_are_those_of_the_cpu(tokenizer: Any, folders: tuple[Path, Path], batch_tokens: int | None) -> None:
    there = scored(tokenizer, folders, device="cuda", batch_tokens=batch_tokens)
    assert there == pytest.approx(scored(tokenizer, folders), abs=1e-4)


def test_bf16_is_near(tokenizer: Any, folders: tuple[Path, Path]) -> None:
    near = scored(tokenizer, folders, device="cuda", dtype="bfloat16")
    exact = scored(tokenizer, folders)
    coded = [key for key in exact if key[1] in ("bits_per_byte", "answer_bits_per_byte")]
    assert coded and all(near[key] == pytest.approx(exact[key], rel=0.05) for key in coded)
