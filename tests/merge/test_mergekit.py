"""How mergekit configs name their models and flags: as people write them, and as mergekit writes them itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import merge
from merge.mergekit import Reference, reference
from tests.merge import vocabularies
from tests.merge.test_adapters import lora


def read(folder: Path, data: dict[str, Any]) -> merge.Recipe:
    (folder / "mergekit.yml").write_text(yaml.safe_dump(data))
    return merge.Recipe.from_yaml(folder / "mergekit.yml")


def ties(folders: dict[str, Path], form: Any, **more: Any) -> dict[str, Any]:
    models = [{"model": form(folders[name]), "parameters": {"weight": 1.0, "density": 0.5}} for name in ("ct", "sft")]
    return {"merge_method": "ties", "base_model": form(folders["base"]), "models": models, "dtype": "float32", **more}


@pytest.mark.parametrize(
    "form",
    [
        lambda path: {"model": {"path": str(path)}},
        lambda path: {"model": {"path": str(path), "revision": None}, "lora": None, "override_architecture": None},
        lambda path: {"path": str(path), "revision": None},
        lambda path: {"model": str(path)},
    ],
)
def test_models_as_mergekit_writes_them(form: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    assert read(tmp_path, ties(folders, form)) == read(tmp_path, ties(folders, str))


def test_in_slices_and_as_the_tokenizers_source(folders: dict[str, Path], tmp_path: Path) -> None:
    def config(form: Any) -> dict[str, Any]:
        sources = [{"model": form(folder), "layer_range": [0, 3]} for folder in folders.values()]
        slices = [{"sources": sources, "base_model": form(folders["base"])}]
        return {"merge_method": "ties", "slices": slices, "parameters": {"weight": 1.0}} | {
            "tokenizer_source": form(folders["ct"])
        }

    found = read(tmp_path, config(lambda path: {"model": {"path": str(path)}}))
    assert found == read(tmp_path, config(str)) and found.tokenizer == "ct"


def test_adapters_and_paths_with_a_plus(folders: dict[str, Path], tmp_path: Path) -> None:
    folders["ct"] = folders["ct"].rename(tmp_path / "a + b")
    adapter = lora(tmp_path / "lora")
    data = ties(folders, lambda path: {"model": {"path": str(path)}})
    data["models"][1]["model"]["lora"] = {"path": str(adapter), "revision": None}
    found = read(tmp_path, data)
    assert [(model.path, model.adapter) for model in found.models] == [(folders["ct"], None), (folders["sft"], adapter)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a/b", Reference("a/b")),
        ("a/b+c/d", Reference("a/b", "c/d")),
        ({"model": {"path": "me/base", "revision": "v1"}}, Reference("me/base@v1")),
        ({"model": "a/b+c/d"}, Reference("a/b", "c/d")),
        ({"model": {"path": "a"}, "lora": {"path": "me/c", "revision": "v2"}}, Reference("a", "me/c@v2")),
    ],
)
def test_references(value: Any, expected: Reference) -> None:
    assert reference(value, "models[0].model") == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "models[0].model: expected a folder, or"),
        ({"model": {"path": 3}}, "models[0].model.model: expected {path: folder}"),
        ({"model": {"path": "a", "revision": 3}}, "models[0].model.model.revision: expected a branch"),
        (
            {"model": {"path": "a"}, "override_architecture": "B"},
            "models[0].model.override_architecture: not supported",
        ),
        ({"modle": "a"}, "models[0].model: expected a folder, or"),
    ],
)
def test_references_that_are_none(value: Any, words: str) -> None:
    with pytest.raises(merge.BadInput) as refused:
        reference(value, "models[0].model")
    assert words in str(refused.value)


@pytest.mark.parametrize(("value", "means"), [(1.0, True), (0.0, False), (1, True), (0, False), (True, True)])
def test_flags_may_be_numbers(value: Any, means: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    """mergekit-evolve writes them so."""
    found = read(tmp_path, ties(folders, str, parameters={"normalize": value, "int8_mask": value, "rescale": value}))
    assert (found.normalize, found.rescale) == (means, "l1" if means else "none")


def test_flags_that_are_none(folders: dict[str, Path], tmp_path: Path) -> None:
    for value in (float("nan"), "yes", [0, 1]):
        with pytest.raises(merge.BadInput, match="normalize: "):
            read(tmp_path, ties(folders, str, parameters={"normalize": value}))


@pytest.mark.parametrize("source", ["base", "union"])
@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_a_base_of_a_method_without_one(method: str, source: str, tmp_path: Path) -> None:
    """It gives the config and the tokenizer, and the rows of tokens that the other models lack, as in mergekit."""
    folders = vocabularies.make(tmp_path / "models")
    for name, eps in (("sft", 1e-6), ("base", 2e-6)):
        config = json.loads((folders[name] / "config.json").read_text()) | {"rms_norm_eps": eps}
        (folders[name] / "config.json").write_text(json.dumps(config))
    models = [{"model": str(folders[name]), "parameters": {"weight": 1.0}} for name in ("sft", "base", "ct")]
    if method == "karcher":
        models = [{"model": entry["model"]} for entry in models]
    data = {"merge_method": method, "models": models, "base_model": str(folders["base"]), "tokenizer_source": source}
    out = merge.write(read(tmp_path, data), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["rms_norm_eps"] == 2e-6
    if method == "linear":
        own = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
        found = load_file(out / "model.safetensors")
        norm = "model.norm.weight"
        torch.testing.assert_close(found[norm], sum(tensors[norm] for tensors in own.values()) / 3)
        ids = {name: vocabularies.ids(folder) for name, folder in folders.items()}
        table = "model.embed_tokens.weight"
        base = own["base"][table][ids["base"]["w3"]]  # which ct has not
        sft = own["sft"][table][ids["sft"]["w3"]]
        row = vocabularies.ids(out)["w3"]
        torch.testing.assert_close(found[table][row], (base + sft + base) / 3)


def test_a_base_that_is_not_listed_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    models = [{"model": str(folders["ct"]), "parameters": {"weight": 1.0}}]
    data = {"merge_method": "linear", "models": models, "base_model": str(folders["base"])}
    with pytest.raises(merge.BadInput, match="base_model: "):
        read(tmp_path, data)
    with pytest.raises(merge.BadInput, match=r"base_model: must be without an adapter, got .*\+"):
        read(tmp_path, ties(folders, str) | {"base_model": f"{folders['base']}+{tmp_path}"})
