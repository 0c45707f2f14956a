"""What `check` reports of a given model before anything runs: its architecture, its embedding and its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import sweep
from pipeline.check.models import check_checkpoints
from pipeline.config import Config
from pipeline.run.run import check_configs
from pipeline.run_plan import plan_for_checks
from tests.architectures.model_kinds import ARCHITECTURES, REJECTED


def config(folder: Path, store: Path, *overrides: str) -> Config:
    words = ("experiment=test", f"model.path={folder}", "model.shape=null", f"store={store}", *overrides)
    return sweep.expand(words, multirun=False).configs[0]


def said(folder: Path, store: Path, *overrides: str) -> list[str]:
    """The lines about given checkpoints; blocks of 64 tokens fit every model of the table."""
    sizes = ("ct.block_size=64", "sft.block_size=64")
    plan, _ = plan_for_checks([config(folder, store, *sizes, *overrides)])
    return [str(finding) for finding in check_checkpoints(plan.cells[0])]


def changed(folder: Path, to: Path, name: str, **values: Any) -> Path:
    """A copy of a model's folder with other values in one of its JSON files."""
    shutil.copytree(folder, to)
    described = json.loads((to / name).read_text(encoding="utf-8")) | values
    (to / name).write_text(json.dumps(described), encoding="utf-8")
    return to


@pytest.mark.parametrize("name", ["llama-2", "qwen-3", "gemma-3", "gpt-neox", "gpt-2", "mixtral", "gemma-3-vision"])
def test_a_supported_model_has_no_finding(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    assert said(models[name], tmp_path) == []


@pytest.mark.parametrize("name", REJECTED)
def test_an_architecture_whose_packed_examples_mix_is_rejected(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    kind = ARCHITECTURES[name]
    lines = said(models[name], tmp_path)
    start = f"model.path={models[name]}: model_type '{kind.model_type}' {kind.rejected}"
    assert len(lines) == 1 and lines[0].startswith(start), lines


def test_a_model_without_heads_is_one_line_of_check(models: dict[str, Path], tmp_path: Path) -> None:
    lines = [finding.text for finding in check_configs([config(models["mamba"], tmp_path)])[1] if finding.fails]
    assert len(lines) == 1 and "model_type 'mamba' keeps a state" in lines[0], lines


def test_sdpa_is_rejected_where_transformers_has_none(models: dict[str, Path], tmp_path: Path) -> None:
    lines = said(models["gemma-2"], tmp_path, "compute.attention=sdpa")
    assert len(lines) == 1 and lines[0].startswith("compute.attention=sdpa: ") and "eager" in lines[0]
    assert said(models["gemma-2"], tmp_path, "compute.attention=eager") == []


def test_a_tokenizer_without_end_is_rejected_before_anything_runs(models: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(models["llama-2"], tmp_path / "model", "tokenizer_config.json", eos_token=None)
    lines = said(folder, tmp_path)
    assert len(lines) == 1 and "has no end-of-text token" in lines[0] and "tokenizer_config.json" in lines[0], lines


@pytest.mark.parametrize("name", ["llama-2", "gpt-neox"])
def test_an_embedding_smaller_than_the_tokenizer_is_rejected(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(models[name], folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size - 3)
    model.save_pretrained(folder)
    lines = said(folder, tmp_path)
    assert len(lines) == 1 and "has 3 tokens beyond them" in lines[0] and "resize_token_embeddings" in lines[0], lines


@pytest.mark.parametrize("used", [False, True])
def test_special_tokens_beyond_the_embedding_are_a_warning_unless_they_end_documents(
    used: bool, models: dict[str, Path], tmp_path: Path
) -> None:
    """As Gemma 3 has it: its tokenizer has the token of a picture, its text models have no row for that."""
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(models["gemma-3"], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token" if used else "pad_token": "<image_soft_token>"})
    tokenizer.save_pretrained(folder)
    lines = said(folder, tmp_path)
    assert len(lines) == 1 and lines[0].startswith("warning: ") is not used and "<image_soft_token>" in lines[0], lines
