"""A new merging method is a few lines of one file: this one is added here, and merged with from a YAML to a file."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import merge
from merge import method_table
from merge.cli import main
from merge.method_table import MAGNITUDE, METHODS, Method


def add_median() -> None:
    """The whole of it."""

    def median(taus: Sequence[torch.Tensor], how: object) -> tuple[torch.Tensor, None]:
        return torch.stack(list(taus)).median(dim=0).values, None

    method_table.register(Method("median", "Median", "a test", MAGNITUDE, consensus=median, mergekit=None))


@pytest.fixture
def median() -> Iterator[None]:
    add_median()
    yield
    del METHODS["median"]


def test_a_new_method_is_a_few_lines() -> None:
    assert len(inspect.getsource(add_median).splitlines()) <= 15


@pytest.mark.usefixtures("median")
def test_a_new_method_merges_from_a_recipe_to_a_file(folders: dict[str, Path], tmp_path: Path) -> None:
    paths = {name: {"path": str(folders[name])} for name in ("ct", "sft")}
    models = {**paths, "other": {"path": str(folders["base"])}}
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump({"method": "median", "base": str(folders["base"]), "models": models, "lambda": 2.0}))
    assert main([str(path), str(tmp_path / "out")]) == 0
    base, ct, sft = (load_file(folders[name] / "model.safetensors") for name in ("base", "ct", "sft"))
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        taus = torch.stack([ct[name] - base[name], sft[name] - base[name], torch.zeros_like(base[name])])
        assert torch.equal(tensor, base[name] + 2.0 * taus.median(dim=0).values), name
    assert merge.Recipe.from_yaml(tmp_path / "out" / "merge.yml") == merge.Recipe.from_yaml(path)
    with pytest.raises(merge.BadInput, match="method median has no key slack"):
        merge.Recipe.from_dict({"method": "median", "base": "base", "models": models, "slack": 1})


@pytest.mark.usefixtures("median")
def test_its_task_vectors_are_trimmed_before(folders: dict[str, Path], tmp_path: Path) -> None:
    model = {"path": str(folders["ct"]), "density": 0.25}
    data = {"method": "median", "base": str(folders["base"]), "models": {"ct": model}, "exact": False}
    out = load_file(merge.write(merge.Recipe.from_dict(data), tmp_path / "out") / "model.safetensors")
    base = load_file(folders["base"] / "model.safetensors")
    changed = sum(int((tensor != base[name]).sum()) for name, tensor in out.items())
    assert changed / sum(tensor.numel() for tensor in out.values()) == pytest.approx(0.25, abs=0.01)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="ties: "):
        method_table.register(Method("ties", "TIES", "again"))


def test_recipes_and_the_table_need_no_torch() -> None:
    code = "import sys, merge.recipe, merge.method_table, merge.cli, pipeline.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
