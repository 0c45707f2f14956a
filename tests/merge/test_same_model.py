"""Good models, however they were saved (tokenizers, heads, weight files); recipes and grids that say it twice."""

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
from merge.recipe import Recipe
from tests.merge.conftest import config, make_folders, moved, recipe, save, weights
from tests.messages import assert_one_line, assert_wording

BPE = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "</s>": 3}, "merges": ["a b"]},
    "added_tokens": [{"id": 3, "content": "</s>"}],
}


def tokenizers(folders: dict[str, Path], base: Any, sft: Any) -> None:
    (folders["base"] / "tokenizer.json").write_text(json.dumps(base))
    (folders["sft"] / "tokenizer.json").write_text(json.dumps(sft))
    (folders["ct"] / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "sft",
    [
        BPE | {"model": BPE["model"] | {"merges": [["a", "b"]]}},
        BPE | {"added_tokens": []},
        BPE | {"added_tokens": [{"id": 3, "content": "</s>", "special": True}, {"id": 0, "content": "a"}]},
        BPE | {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}},
    ],
)  # fmt: skip
def test_one_tokenizer_of_two_versions(sft: Any, folders: dict[str, Path]) -> None:
    tokenizers(folders, BPE, sft)
    merge.check(recipe(folders, "ties"))


def test_other_tokenizers_are_told_apart(folders: dict[str, Path]) -> None:
    tokenizers(folders, BPE, BPE | {"added_tokens": [{"id": 2, "content": "</s>"}]})
    with pytest.raises(merge.BadInput, match=r"another vocabulary .*\(token '</s>' is 2, not 3\)"):
        merge.check(recipe(folders, "ties"))
    tokenizers({**folders, "ct": folders["sft"]}, BPE, BPE)


@pytest.mark.parametrize("second", ["b", "ᠪ"])
def test_a_sentencepiece_model_against_a_tokenizer_json(second: str, folders: dict[str, Path]) -> None:
    from transformers.utils import sentencepiece_model_pb2_new as schema

    model = schema.ModelProto()  # type: ignore[attr-defined]
    for piece in ("a", second, "ab"):
        model.pieces.add().piece = piece
    tokenizers(folders, BPE, BPE)
    (folders["sft"] / "tokenizer.json").unlink()
    (folders["sft"] / "tokenizer.model").write_bytes(model.SerializeToString())
    if second == "b":
        merge.check(recipe(folders, "ties"))
    else:
        with pytest.raises(merge.BadInput, match="id 1 is 'ᠪ', not 'b'"):
            merge.check(recipe(folders, "ties"))


def test_a_head_that_is_stored_once_more_is_still_the_embedding(tmp_path: Path) -> None:
    base = weights(0)
    folders = {}
    for name, held in (("base", base), ("ct", moved(base, 1)), ("sft", moved(base, 2))):
        folders[name] = save(tmp_path / name, held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()})
    halves = {name: {"density": 0.5} for name in ("ct", "sft")}
    out = merge.write(recipe(folders, "dare_ties", halves), tmp_path / "out")
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_head_that_is_another_is_kept_whatever_the_config_says(tmp_path: Path) -> None:
    base = weights(0)
    folders = {name: save(tmp_path / name, moved(weights(0, tied=False), i)) for i, name in enumerate(("base", "ct"))}
    out = merge.write(recipe(folders, "ties", {"ct": {}}), tmp_path / "out")
    found = load_file(out / "model.safetensors")
    assert found["lm_head.weight"].shape == base["model.embed_tokens.weight"].shape
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_tied_by_default_where_the_config_says_nothing(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    silent = {key: value for key, value in config().items() if key != "tie_word_embeddings"}
    untied = moved(weights(0, tied=False), 3)
    folders["sft"] = save(tmp_path / "untied", untied, tied=False)
    for name in ("base", "ct"):
        (folders[name] / "config.json").write_text(json.dumps(silent))
    merge.check(recipe(folders, "ties", {"ct": {}}))
    merge.check(recipe(folders, "ties"))


def test_gpt2_is_tied_by_default_and_stays_so(tmp_path: Path) -> None:
    """One of its checkpoints stores the head, the others do not; none of their configs says a word."""
    draw = torch.Generator().manual_seed(0)
    base = {
        name: torch.randn(8, 4, generator=draw) for name in ("transformer.wte.weight", "transformer.h.0.mlp.weight")
    }
    stored = moved(base, 2)
    head = {"lm_head.weight": stored["transformer.wte.weight"].clone()}
    parents = {"base": base, "ct": moved(base, 1), "sft": stored | head}
    folders = {name: save(tmp_path / name, tensors) for name, tensors in parents.items()}
    for folder in folders.values():
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    out = merge.write(recipe(folders, "task_arithmetic"), tmp_path / "out")
    assert load_file(out / "model.safetensors").keys() == base.keys()
    assert json.loads((out / "config.json").read_text()).get("tie_word_embeddings", True) is True


def test_a_stray_adapter_beside_a_bin(folders: dict[str, Path]) -> None:
    file = folders["ct"] / "model.safetensors"
    torch.save(load_file(file), folders["ct"] / "pytorch_model.bin")
    file.rename(folders["ct"] / "adapter_model.safetensors")
    merge.check(recipe(folders, "ties"))


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (["ct.density=0.2", "density=0.5"], "both set ct.density"),
        (["slack=0,1", "slack=2"], "both set slack"),
        (["density=.5,0.50"], "density=.5,0.50: "),
        (["density={"], "--grid density={: "),
        (["base=/x"], "base=/x: "),
        (["density=[0.5]"], "got [0.5]"),
    ],
)
def test_grids_say_what_they_do(
    axes: list[str], words: str, folders: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "merge.yml"
    recipe(folders, "ties_sv", {"ct": {"density": 0.5}, "sft": {}}, slack=1, protect="sft").save(path)
    assert main([str(path), "--plan", "--grid", *axes]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert_one_line(error, "merge: ")
    assert_wording(f"grid: {axes}", error, TMP=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method: ties\nmethod: linear", "the key method is given twice (line 2)"),
        ("models:\n  ct: {path: a}\n  ct: {path: b}", "the key ct is given twice (line 3)"),
        ("models: {1: {path: a}, '1': {path: b}}\nmethod: linear", "models: "),
        ("method: [ties]", "method: "),
        ("merge_method: {}", "merge_method: "),
        ("method: " + "[" * 3000, "nested too deeply"),
        ("method: linear\nmodels: {a: {path: a, weight: 2020-01-01}}", "models.a.weight: expected a number"),
        ("method: linear\nmodels: {a: {path: a, weight: " + "9" * 400 + "}}", "one that is too large"),
        ("method: linear\nmodels: {a: {path: 2020-01-01}}", "models.a.path: expected a folder"),
        ("method: linear\nmodels: {a: {path: " + "x" * 5000 + "}}", "longer than the file system allows"),
        ("merge_method: linear\nslices: [5]", "slices[0]: expected sources"),
        ("merge_method: linear\nmodels: [{model: ../nope, parameters: {weight: 1}}]", "../nope: no such folder"),
        ("a: &a [*a]", "more than 100,000 values"),
    ],
)
def test_recipes_that_say_nothing_sensible(text: str, words: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "merge.yml"
    path.write_text(text)
    assert main([str(path), "--plan"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and "hub" not in error


def test_mergekit_lists_a_model_once(tmp_path: Path) -> None:
    entry = {"model": "a", "parameters": {"weight": 1}}
    path = tmp_path / "mk.yml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": [entry, dict(entry)]}))
    with pytest.raises(merge.BadInput, match="a is listed twice"):
        Recipe.from_yaml(path)


@pytest.mark.parametrize(
    ("option", "words"),
    [(["--device", "cuda:99"], "device=cuda:99"), (["--memory", "infGB"], "a size"), (["--threads", "0"], "1 or more")],
)
def test_options(option: list[str], words: str, folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    recipe(folders, "ties").save(tmp_path / "merge.yml")
    assert main([str(tmp_path / "merge.yml"), str(tmp_path / "out"), *option]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()
