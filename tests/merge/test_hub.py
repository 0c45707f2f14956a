"""Models of the hub in recipes.

By the hub's own library over a cache laid out as it lays it out; there is no network.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge
from tests.merge.test_adapters import lora, on

COMMIT = "1" * 40


@pytest.fixture
def cached(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three checkpoints as me/base, me/ct and me/sft, each its main at COMMIT."""
    from huggingface_hub import constants

    cache = tmp_path / "hf"
    for name, folder in folders.items():
        model = cache / f"models--me--{name}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text(COMMIT)
        shutil.copytree(folder, model / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folders


def test_a_model_of_the_hub_is_merged_as_its_folder_is(cached: dict[str, Path], tmp_path: Path) -> None:
    def recipe(place: dict[str, str]) -> merge.Recipe:
        models = {name: {"path": place[name], "density": 0.5} for name in ("ct", "sft")}
        return merge.Recipe.from_dict({"method": "ties", "base": place["base"], "models": models})

    local = merge.write(recipe({name: str(folder) for name, folder in cached.items()}), tmp_path / "local")
    remote = merge.write(
        recipe({"base": "hub:me/base", "ct": f"hub:me/ct@{COMMIT}", "sft": "hub:me/sft@main"}), tmp_path / "remote"
    )
    one, two = (load_file(folder / "model.safetensors") for folder in (local, remote))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    card, saved = (remote / "README.md").read_text(), (remote / "merge.yml").read_text()
    assert "- me/base\n- me/ct\n- me/sft" in card and f"hub:me/ct@{COMMIT}" in saved


def test_a_mergekit_config_names_models_of_the_hub(cached: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "merge.yml"
    config.write_text(
        "merge_method: task_arithmetic\nbase_model: me/base\nmodels:\n"
        "- {model: me/ct@main, parameters: {weight: 1.0}}\n"
        f"- {{model: {cached['sft']}, parameters: {{weight: 0.5}}}}\n"
    )
    recipe = merge.Recipe.from_yaml(config)
    assert [str(recipe.base), *(str(model.path) for model in recipe.models)] == [
        "hub:me/base",
        "hub:me/ct@main",
        str(cached["sft"]),
    ]
    merge.check(recipe)


def test_an_adapter_of_the_hub(cached: dict[str, Path], tmp_path: Path) -> None:
    from huggingface_hub import constants

    adapter = lora(tmp_path / "lora")
    expected = load_file(merge.write(on(cached["ct"], adapter), tmp_path / "local") / "model.safetensors")
    model = Path(constants.HF_HUB_CACHE) / "models--me--lora"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    shutil.copytree(adapter, model / "snapshots" / COMMIT)
    config = tmp_path / "merge.yml"
    config.write_text("merge_method: linear\nmodels:\n- {model: me/ct+me/lora, parameters: {weight: 1.0}}\n")
    out = merge.write(merge.Recipe.from_yaml(config), tmp_path / "remote")
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert f"adapter: hub:me/lora@{COMMIT}" in (out / "README.md").read_text()


def test_a_model_that_cannot_be_had_is_refused_in_one_line(cached: dict[str, Path]) -> None:
    recipe = merge.Recipe.from_dict(
        {"method": "linear", "models": {"a": {"path": "hub:me/ct"}, "b": {"path": "hub:me/other"}}}
    )
    with pytest.raises(merge.BadInput, match="hub:me/other@main: the Hub is unreachable"):
        merge.check(recipe)
