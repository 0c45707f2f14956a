"""New merging methods are a row, with a function or a class: they are added here, and merged with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import merge
from merge import methods
from merge.cli import main
from merge.engine.pieces import Piece
from merge.engine.sparsification import SPARSIFICATIONS, Sparsification
from merge.engine.tensor_recipe import COMBINATIONS, MergedDelta, ModelTerm, TaskVectorMerge, TensorRecipe
from merge.methods import MAGNITUDE, METHODS, SPAN, Combination, Method, Sparsifier


def run(folders: dict[str, Path], out: Path, method: Method, **settings: object) -> dict[str, torch.Tensor]:
    """Register a method, and merge ct and sft by it from a recipe to a file."""
    methods.register(method)
    try:
        models = {name: {"path": str(folders[name])} for name in ("ct", "sft")}
        data = {"method": method.name, "base": str(folders["base"]), "models": models, **settings}
        return load_file(merge.write(merge.Recipe.from_dict(data), out) / "model.safetensors")
    finally:
        del METHODS[method.name]


@pytest.fixture
def median() -> Iterator[None]:
    def consensus(taus: Sequence[torch.Tensor], how: object) -> tuple[torch.Tensor, None]:
        return torch.stack(list(taus)).median(dim=0).values, None

    methods.register(Method("median", "Median", "a test", MAGNITUDE, consensus=consensus, mergekit=None))
    yield
    del METHODS["median"]


def test_a_function_of_dot_products_is_a_method(folders: dict[str, Path], tmp_path: Path) -> None:
    def halves(gram: object, weights: Sequence[float], normalize: bool) -> list[float]:
        return [0.5 for _ in weights]

    out = run(folders, tmp_path / "out", Method("halves", "Halves", "a test", combine=SPAN, span=halves, mergekit=None))
    base, ct, sft = (load_file(folders[name] / "model.safetensors") for name in ("base", "ct", "sft"))
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, base[name] + (ct[name] - base[name] + sft[name] - base[name]) / 2)


def test_a_class_is_a_way_to_sparsify(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Positive(Sparsification):
        """Keep values above zero."""

        def keeps_all(self, tensor: TaskVectorMerge, term: ModelTerm) -> bool:
            return False

        def sparsify(self, tensor: TaskVectorMerge, term: ModelTerm, piece: Piece) -> torch.Tensor:
            return piece.tau(term.parent, tensor.dtype).clamp(min=0)

    positive = Sparsifier("positive")
    monkeypatch.setitem(SPARSIFICATIONS, positive, Positive())
    out = run(folders, tmp_path / "out", Method("positive", "Positive", "a test", positive, mergekit=None))
    base, ct, sft = (load_file(folders[name] / "model.safetensors") for name in ("base", "ct", "sft"))
    for name, tensor in out.items():
        taus = (each[name] - base[name] for each in (ct, sft))
        assert torch.equal(tensor, base[name] + sum(tau.clamp(min=0) for tau in taus)), name


def test_a_class_is_a_way_to_combine(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TensorRecipe):
        """Take the largest weight."""

        def merge(self, piece: Piece, delta: MergedDelta | None) -> torch.Tensor:
            return torch.stack([piece.theta(term.parent, self.dtype) for term in self.terms]).amax(dim=0)

    largest = Combination("largest", recipe_keys=("t",))
    monkeypatch.setitem(COMBINATIONS, largest, Largest)
    method = Method("largest", "Largest", "a test", combine=largest, weighted=False, mergekit=None)
    out = run(folders, tmp_path / "out", method, t=0.25)
    ct, sft = (load_file(folders[name] / "model.safetensors") for name in ("ct", "sft"))
    for name, tensor in out.items():
        assert torch.equal(tensor, torch.maximum(ct[name], sft[name])), name


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
        methods.register(Method("ties", "TIES", "again"))


def test_recipes_and_the_table_need_no_torch() -> None:
    code = "import sys, merge.recipe, merge.methods, merge.cli, pipeline.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
