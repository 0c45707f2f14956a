"""Merges in memory are the models that written merges load as, also of architectures whose files name or divide tensors
otherwise than the model does; they are made without a file, and without holding their weights twice.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import merge
from merge.engine import in_memory
from tests.architectures.model_kinds import untrained
from tests.merge.conftest import make_folders

EXPERTS = ("mixtral", "qwen-3-moe")
RENAMED = ("gpt-neox",)
SLICES = [{"layers": "0-1", "models": {"ct": {}, "sft": {}}}, {"layers": "1-2", "models": {"sft": {}}}]


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No temporary folder can be made."""

    def refuse(*_: Any) -> str:
        raise AssertionError("a merge in memory makes a temporary folder")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    return monkeypatch


def recipe_of(name: str, root: Path, weight: float = 0.7) -> merge.Recipe:
    """A merge of two checkpoints of an architecture whose weights differ everywhere."""
    for role in ("ct", "sft"):
        folder = root / role
        if not folder.is_dir():
            model = AutoModelForCausalLM.from_pretrained(untrained(name, folder))
            torch.manual_seed(len(role))
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(folder)
    models = {"ct": {"path": root / "ct", "weight": weight}, "sft": {"path": root / "sft", "weight": 1 - weight}}
    return merge.Recipe.from_dict({"method": "linear", "models": models})


def assert_is(found: Any, written: Path) -> None:
    """A model is what transformers loads from a folder: its weights, and what it computes."""
    expected = AutoModelForCausalLM.from_pretrained(written, dtype="auto").eval()
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys() and found.dtype == expected.dtype
    assert [name for name, tensor in found.state_dict().items() if not torch.equal(tensor, state[name])] == []
    assert found.config.to_dict() | {"_name_or_path": ""} == expected.config.to_dict() | {"_name_or_path": ""}
    with torch.no_grad():
        assert torch.equal(*(model(torch.tensor([[5, 9, 3, 7]])).logits for model in (found, expected)))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", [*EXPERTS, *RENAMED])
def test_merges_in_memory_are_those_of_files(
    name: str, in_place: bool, tmp_path: Path, no_files: pytest.MonkeyPatch
) -> None:
    no_files.setattr(*((in_memory, "_converted", None) if in_place else (in_memory, "_sink", lambda *_: None)))
    recipes = [recipe_of(name, tmp_path, weight) for weight in (0.7, 0.2)]
    for number, (one, model) in enumerate(in_memory.load_many(recipes)):
        assert_is(model, merge.write(one, tmp_path / str(number)))
        assert type(model).__name__ in model.config.architectures


def test_experts_are_parts_of_one_tensor(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(untrained("mixtral", tmp_path))
    experts = model.model.layers[1].mlp.experts
    stem = "model.layers.1.block_sparse_moe.experts.2"
    shapes = {f"{stem}.w{number}.weight": (48, 32) for number in (1, 3)} | {f"{stem}.w2.weight": (32, 48)}
    assert in_memory.find_places(model, shapes) is None, "they leave most of the model unfilled"
    saved = in_memory._as_saved(model, model.state_dict())
    for key, part in (("w1", experts.gate_up_proj[2, :48]), ("w3", experts.gate_up_proj[2, 48:])):
        assert saved[f"{stem}.{key}.weight"].data_ptr() == part.data_ptr()
        assert torch.equal(saved[f"{stem}.{key}.weight"], part)
    assert saved[f"{stem}.w2.weight"].data_ptr() == experts.down_proj[2].data_ptr()


def test_a_stack_of_layers_is_made_without_files(tmp_path: Path, no_files: pytest.MonkeyPatch) -> None:
    folders = make_folders(tmp_path)
    models = {name: {"path": str(folders[name])} for name in ("ct", "sft")}
    one = merge.Recipe.from_dict({"method": "ties", "base": str(folders["base"]), "models": models, "slices": SLICES})
    assert_is(merge.load(one), merge.write(one, tmp_path / "written"))
