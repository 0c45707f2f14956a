"""Rows of tokens that a chat template writes are the chat model's own, whatever the merge does to the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import merge
from merge.checkpoints.tokenizer import template_tokens
from merge.engine import pieces
from tests.pipeline.tiny_pair import HIDDEN, make_pair, shifted
from tests.train.data.chat.model_templates import OLMO, text, tokenizer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MARKS = ("<|im_start|>", "<|im_end|>")


def recipe(folders: dict[str, Path], **more: Any) -> merge.Recipe:
    models = {name: {"path": folders[name]} for name in ("ct", "sft")}
    return merge.Recipe.from_dict({"method": "ties", "density": 0.1, "base": folders["base"], "models": models, **more})


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    base, chat = make_pair(tmp_path, tied=request.param)
    return {"base": base, "sft": chat, "ct": shifted(base, tmp_path / "ct")}


def test_turn_marks_are_the_chat_models_bits(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On disk and in memory; all other rows are as without the setting."""
    monkeypatch.setattr(pieces, "SLICE", 7 * HIDDEN)  # tables in many slices
    plain = load_file(merge.write(recipe(folders), tmp_path / "plain") / "model.safetensors")
    own = load_file(merge.write(recipe(folders, special_rows="sft"), tmp_path / "own") / "model.safetensors")
    chat = load_file(folders["sft"] / "model.safetensors")
    ids = AutoTokenizer.from_pretrained(folders["sft"]).get_vocab()
    rows = [ids[mark] for mark in MARKS]
    tables = [name for name in (EMBEDDING, HEAD) if name in chat]
    assert own.keys() == plain.keys() and tables
    for name in tables:
        assert torch.equal(own[name][rows], chat[name][rows])
        assert not torch.equal(plain[name][rows], chat[name][rows])
        others = [row for row in range(len(own[name])) if row not in rows]
        assert torch.equal(own[name][others], plain[name][others])
    assert all(torch.equal(own[name], plain[name]) for name in own if name not in tables)
    memory = merge.load(recipe(folders, special_rows="sft")).state_dict()
    assert all(torch.equal(memory[name], own[name]) for name in own)


def test_a_card_makes_them_again(folders: dict[str, Path], tmp_path: Path) -> None:
    made = merge.write(recipe(folders, special_rows="sft"), tmp_path / "out")
    again = merge.write(merge.Recipe.from_yaml(made / "merge.yml"), tmp_path / "again")
    assert (made / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_new_tokens_of_the_chat_model_get_its_rows(tmp_path: Path) -> None:
    """Two tokens more in the chat model: n + 2 rows; the two are its own, and all but the marks go by the recipe."""
    base, chat = make_pair(tmp_path, added=("<|tamil|>", "<|tibetan|>"))
    folders = {"base": base, "sft": chat, "ct": shifted(base, tmp_path / "ct")}
    models = {name: {"path": folders[name]} for name in ("ct", "sft")}
    data = {"method": "task_arithmetic", "base": base, "models": models, "tokenizer": "sft", "special_rows": "sft"}
    out = merge.write(merge.Recipe.from_dict(data), tmp_path / "out")
    of = AutoTokenizer.from_pretrained(out)
    origin, ct, theirs, got = (
        load_file(at / "model.safetensors")[EMBEDDING] for at in (base, folders["ct"], chat, out)
    )
    n = len(origin)
    assert len(got) == len(theirs) == n + 2
    assert of("<|tibetan|>", add_special_tokens=False).input_ids == [n + 1]
    marks = [of.get_vocab()[mark] for mark in MARKS]
    assert torch.equal(got[[n, n + 1, *marks]], theirs[[n, n + 1, *marks]])
    others = [row for row in range(n) if row not in marks]
    torch.testing.assert_close(got[others], (ct + theirs[:n] - origin)[others], rtol=1e-5, atol=1e-6)
    assert AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().weight.shape == (n + 2, HIDDEN)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"special_rows": "chat"}, r"special_rows: no model is called 'chat'; the models are base, ct, sft"),
        ({"special_rows": "ct"}, r"base: has no chat template\. Name a chat model"),
        ({"special_rows": "sft", "tokenizer": "optional"}, r"special_rows: goes by the names of tokens"),
    ],
)
def test_what_has_no_such_rows_is_refused(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    base, chat = make_pair(tmp_path)
    with pytest.raises(merge.BadInput, match=says):
        merge.check(recipe({"base": base, "sft": chat, "ct": base}, **more))


def test_marks_that_a_template_puts_together_are_found(tmp_path: Path) -> None:
    """`'<|' + role + '|>'` stands nowhere in its text; spaces that are tokens stand everywhere and are no marks."""
    of = tokenizer(OLMO)
    of.add_tokens(["  "])
    of.save_pretrained(tmp_path)
    found = template_tokens(tmp_path)
    assert {"<|user|>", "<|assistant|>", "<|system|>", "<s>", "<|im_end|>"} <= set(found)
    assert "  " not in found and "[INST]" not in found


def test_a_template_that_takes_no_system_message(tmp_path: Path) -> None:
    tokenizer(text("gemma"), "gemma").save_pretrained(tmp_path)
    assert set(template_tokens(tmp_path)) == {"<s>", "<start_of_turn>", "<end_of_turn>"}  # <s>: its bos_token
