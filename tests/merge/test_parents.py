"""Parents of every kind: tied and untied, of mixed dtypes, with buffers, in the older format, with a LoRA on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge
from merge.engine import pieces
from merge.recipe import Recipe
from tests.merge.conftest import config, moved, recipe, save, weights
from tests.merge.test_engine import HALF, merged


def test_untied_parents_and_tied_ones_meet_in_an_untied_result(tmp_path: Path) -> None:
    base = weights(0)
    untied = moved(base, 1) | {"lm_head.weight": torch.randn(base["model.embed_tokens.weight"].shape)}
    folders = {"base": save(tmp_path / "base", base), "ct": save(tmp_path / "ct", untied, tied=False)}
    out = merge.write(recipe(folders, "task_arithmetic", {"ct": {"weight": 0.5}}), tmp_path / "out")
    head = load_file(out / "model.safetensors")["lm_head.weight"]
    torch.testing.assert_close(head, (base["model.embed_tokens.weight"] + untied["lm_head.weight"]) / 2)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_mixed_dtypes_and_buffers(tmp_path: Path) -> None:
    base, buffer = weights(0), {"model.steps": torch.tensor([1, 2])}
    half = {name: tensor.bfloat16() for name, tensor in moved(base, 1).items()}
    folders = {"base": save(tmp_path / "base", base | buffer), "ct": save(tmp_path / "ct", half | buffer)}
    out = merge.write(
        recipe(folders, "task_arithmetic", {"ct": {"weight": 0.5}}, out_dtype="float16"), tmp_path / "out"
    )
    found = load_file(out / "model.safetensors")
    assert (
        found["model.steps"].tolist() == [1, 2] and json.loads((out / "config.json").read_text())["dtype"] == "float16"
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found[name], (base[name] + 0.5 * (half[name].float() - base[name])).half())


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_tensors_without_elements_pass(tmp_path: Path, method: str, compute_dtype: str) -> None:
    empty = {"model.empty.weight": torch.empty(0, 8)}
    base = weights(0)
    folders = {"base": save(tmp_path / "base", base | empty), "ct": save(tmp_path / "ct", moved(base, 1) | empty)}
    models = {"ct": {"density": 0.5}} if method == "ties" else {"ct": {}}
    out = merge.write(recipe(folders, method, models, compute_dtype=compute_dtype), tmp_path / "out")
    assert load_file(out / "model.safetensors")["model.empty.weight"].shape == (0, 8)


def test_bin_checkpoints_are_read(folders: dict[str, Path]) -> None:
    expected = merged(recipe(folders, "ties", HALF))
    file = folders["ct"] / "model.safetensors"
    torch.save(load_file(file), folders["ct"] / "pytorch_model.bin")
    file.unlink()
    found = merged(recipe(folders, "ties", HALF))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_lora_is_merged_on_the_fly(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, rank = "model.layers.1.mlp.down_proj", 4
    a, b = torch.randn(rank, config()["intermediate_size"]), torch.randn(config()["hidden_size"], rank)
    adapter = tmp_path / "lora"
    adapter.mkdir()
    factors = {f"base_model.model.{module}.lora_{side}.weight": x for side, x in (("A", a), ("B", b))}
    save_file(factors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8}))
    monkeypatch.setattr(pieces, "SLICE", 100)
    one = Recipe.from_dict(
        {
            "method": "linear",
            "models": {"plain": {"path": folders["ct"]}, "lora": {"path": folders["ct"], "adapter": adapter}},
        }
    )
    found, plain = merged(one), load_file(folders["ct"] / "model.safetensors")
    for name, tensor in plain.items():
        expected = tensor + (b @ a if name == f"{module}.weight" else 0)  # half of alpha / r = 2
        torch.testing.assert_close(found[name], expected.flatten())
