"""Restacked layers: what they hold, where they are loaded from, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import merge
from merge.cli import main
from tests.merge.conftest import config

STACK: list[dict[str, Any]] = [
    {"models": {"ct": {"layers": "0-1"}}},
    {"layers": "1-2", "models": {"sft": {"scale": [{"filter": "down_proj", "value": 0.5}, {"value": 1}]}}},
]


def recipe(folders: dict[str, Path], slices: Any, **settings: Any) -> dict[str, Any]:
    models = {name: {"path": str(folders[name])} for name in ("ct", "sft")}
    return {"method": "passthrough", "models": models, "slices": slices} | settings


def test_layers_are_copied_under_new_names(folders: dict[str, Path], tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    (folders["ct"] / "config.json").write_text(json.dumps(config() | {"layer_types": kinds}))
    (folders["sft"] / "config.json").write_text(json.dumps(config() | {"layer_types": kinds}))
    path = merge.write(merge.Recipe.from_dict(recipe(folders, STACK)), tmp_path / "out")
    out, ct, sft = (load_file(folder / "model.safetensors") for folder in (path, folders["ct"], folders["sft"]))
    for name, tensor in out.items():
        parts = name.split(".")
        if parts[1] != "layers":
            expected = (sft if "norm" in name else ct)[name]
        elif int(parts[2]) < 2:
            expected = ct[name]
        else:
            expected = sft[".".join([*parts[:2], str(int(parts[2]) - 1), *parts[3:]])]
            expected = expected * 0.5 if "down_proj" in name else expected
        assert torch.equal(tensor, expected), name
    written = json.loads((path / "config.json").read_text())
    assert written["num_hidden_layers"] == 4
    assert written["layer_types"] == [kinds[layer] for layer in (0, 1, 1, 2)]


def test_a_base_is_not_what_passes_through(folders: dict[str, Path], tmp_path: Path) -> None:
    stated = {"method": "passthrough", "base": str(folders["base"]), "models": {"ct": {"path": str(folders["ct"])}}}
    out = load_file(merge.write(merge.Recipe.from_dict(stated), tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(out[name], own) for name, own in load_file(folders["ct"] / "model.safetensors").items())


def test_a_stack_loads_and_is_counted(folders: dict[str, Path]) -> None:
    slices = [{"layers": "0-1", "models": {"ct": {}, "sft": {}}}, {"layers": "1-2", "models": {"sft": {}}}]
    stated = merge.Recipe.from_dict(recipe(folders, slices, method="ties", base=str(folders["base"])))
    assert merge.Recipe.from_dict(stated.to_dict()) == stated
    model = merge.load(stated)
    assert model.config.num_hidden_layers == 4 and model.state_dict()["model.layers.3.mlp.up_proj.weight"].shape
    report = merge.audit(stated)
    assert report["by_layer"].keys() == {"0", "1", "2", "3", "outside"}
    assert report["by_layer"]["3"].keys() == {"sft"}


def test_a_grid_sets_slices_too(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "merge.yml"
    given = recipe(folders, [{"models": {"ct": {"layers": "0-1", "scale": 3}}}])
    given["models"].pop("sft")
    path.write_text(yaml.safe_dump(given))
    assert main([str(path), str(tmp_path / "out"), "--grid", "scale=1,2"]) == 0
    one, two = (load_file(tmp_path / "out" / f"scale={scale}" / "model.safetensors") for scale in (1, 2))
    assert all(torch.equal(two[name], 2 * tensor) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        ([], "slices: expected a list"),
        ([{"models": {}}], "slices[0]: models: expected a mapping"),
        ([{"models": {"nope": {"layers": 0}}}], "slices[0].models.nope: no such model"),
        ([{"models": {"ct": {}}}], "slices[0]: models.ct.layers: missing"),
        (STACK[:1], "models.sft: no slice uses"),
        ([*STACK, {"models": {"ct": {"layers": "2-5"}}}], "slices[2]: layers 2-5 of "),
        ([{"models": {"ct": {"layers": "x"}}}], "slices[0].models.ct.layers: "),
        ([{"models": {"ct": {"layers": 0, "path": "other"}}}], "path and adapter belong under the recipe's own"),
        ([{"models": {"ct": {"layers": 0}}, "seed": 1}], "slices[0]: a slice has no key seed"),
        ([{"layers": 0, "models": {"ct": {}, "sft": {}}}], "slices[0]: models: passthrough needs 1"),
    ],
)
def test_slices_that_cannot_be_are_refused(
    folders: dict[str, Path], tmp_path: Path, slices: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(recipe(folders, slices)))
    assert main([str(path), "--plan"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said


def test_a_slices_models_give_as_many_layers(folders: dict[str, Path]) -> None:
    slices = [{"models": {"ct": {"layers": "0-1"}, "sft": {"layers": "0-2"}}}]
    with pytest.raises(merge.BadInput, match="0-2 of sft and 2 layers of ct"):
        merge.Recipe.from_dict(recipe(folders, slices, method="linear"))


def test_layers_of_other_widths_are_not_stacked(folders: dict[str, Path]) -> None:
    (folders["sft"] / "config.json").write_text(json.dumps(config() | {"num_key_value_heads": 2}))
    with pytest.raises(merge.BadInput, match="num_key_value_heads is 2"):
        merge.check(merge.Recipe.from_dict(recipe(folders, STACK)))
