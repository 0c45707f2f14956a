"""Differing vocabularies by their definition, token by token, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge.engine import pieces
from merge.engine.plan import make_plan
from tests.merge.conftest import HIDDEN
from tests.merge.vocabularies import make

EMBEDDING = "model.embed_tokens.weight"


def recipe(folders: dict[str, Path], tokenizer: str, method: str = "task_arithmetic", **more: Any) -> merge.Recipe:
    data: dict[str, Any] = {"method": method, "tokenizer": tokenizer, **more}
    data["models"] = {name: {"path": folders[name], "weight": 0.5} for name in ("ct", "sft")}
    return merge.Recipe.from_dict(data | ({} if method == "linear" else {"base": folders["base"]}))


def tokens(folder: Path) -> dict[str, int]:
    import tokenizers

    found: dict[str, int] = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return found


def table(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[EMBEDDING]


@pytest.mark.parametrize("tokenizer", ["union", "base", "ct"])
@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_each_token_keeps_its_row(tokenizer: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SLICE", 5 * HIDDEN)  # tables in many slices
    folders = make(tmp_path, {"base": 7, "ct": 3})
    if method == "linear" and tokenizer == "base":
        folders["base"] = folders["ct"]
    out = merge.write(recipe(folders, tokenizer, method), tmp_path / "out")
    names = ("ct", "sft") if method == "linear" else ("base", "ct", "sft")
    ids, rows = ({name: each(folders[name]) for name in names} for each in (tokens, table))
    for token, number in tokens(out).items():
        have = [name for name in names if token in ids[name]]
        filled = {name: rows[name][ids[name][token]] for name in have}
        mean = torch.stack([*filled.values(), torch.zeros(HIDDEN)]).sum(0) / max(1, len(have))
        fill = filled.get("base", mean) if len(have) != 1 else filled[have[0]]
        own = {name: filled.get(name, fill) for name in names}
        expected = 0.5 * own["ct"] + 0.5 * own["sft"]
        torch.testing.assert_close(table(out)[number], expected, rtol=1e-5, atol=1e-6, msg=token)
    assert len(table(out)) >= len(tokens(out)) == len(set(tokens(out).values()))


def test_rows_that_pad_are_kept(tmp_path: Path) -> None:
    """Models of one tokenizer, one of them padded further: the base's rows are all there, and its number of them."""
    folders = make(tmp_path, {"base": 7})
    for name in ("ct", "sft"):
        (folders[name] / "tokenizer.json").write_text((folders["base"] / "tokenizer.json").read_text())
    count = len(tokens(folders["base"]))
    out = merge.write(recipe(folders, "base"), tmp_path / "out")
    assert torch.equal(table(out)[count:], table(folders["base"])[count:]) and len(table(out)) == count + 7
    with pytest.raises(merge.BadInput, match="the vocabularies differ: set `tokenizer: base` or `union`"):
        merge.check(recipe(folders, "required"))


def test_a_union_is_a_model_that_reads_all_scripts(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = make(tmp_path, {"sft": 5}, tied=False)
    one = recipe(folders, "union")
    out = merge.write(one, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    numbers = tokenizer("w3 ภาษา ქართული <|im_end|>", return_tensors="pt").input_ids
    assert tokenizer.convert_ids_to_tokens(numbers[0].tolist()) == ["w3", "ภาษา", "ქართული", "<|im_end|>"]
    model, loaded = AutoModelForCausalLM.from_pretrained(out), merge.load(one)
    with torch.no_grad():
        torch.testing.assert_close(model(numbers).logits, loaded(numbers).logits)
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0]


def test_the_tokenizer_of_a_model_brings_its_special_tokens(tmp_path: Path) -> None:
    folders = make(tmp_path)
    (folders["ct"] / "generation_config.json").write_text('{"eos_token_id": 5}')
    config = json.loads((folders["ct"] / "config.json").read_text())
    (folders["ct"] / "config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    out = merge.write(recipe(folders, "ct"), tmp_path / "out")
    assert tokens(out) == tokens(folders["ct"])
    assert [json.loads((out / f"{name}.json").read_text())["eos_token_id"] for name in ("config", "generation_config")]


def test_models_of_one_vocabulary_are_read_as_they_are(tmp_path: Path) -> None:
    folders = make(tmp_path)
    same = {name: folders["base"] for name in folders}
    plan = make_plan([recipe(same, "union")])
    assert plan.alignment is not None and plan.alignment.rows is None
    plan.close()


def test_refusals(tmp_path: Path) -> None:
    folders = make(tmp_path)
    with pytest.raises(merge.BadInput, match=r"tokenizer: not known, got 'other'"):
        recipe(folders, "other")
    with pytest.raises(merge.BadInput, match=r"chat_template: must be one of auto, chatml, or the text of a template"):
        recipe(folders, "base", chat_template="llama3")
    with pytest.raises(merge.BadInput, match="need a pass each"):
        make_plan([recipe(folders, "base"), recipe(folders, "union")])
    (folders["sft"] / "tokenizer.json").rename(folders["sft"] / "vocab.json")
    (folders["sft"] / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(merge.BadInput, match=r"sft/tokenizer.json: no such file"):
        merge.check(recipe(folders, "union"))
    merge.check(recipe(folders, "base"))
    text = json.loads((folders["base"] / "tokenizer.json").read_text())
    text["model"]["vocab"] |= {"w1": 2, "w2": 2, "w3": -1}
    (folders["base"] / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(merge.BadInput, match="ids are not rows"):
        merge.check(recipe(folders, "base"))
