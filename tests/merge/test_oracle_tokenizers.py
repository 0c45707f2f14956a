"""Merges of differing vocabularies, and chat templates, against real mergekit (tests/merge/oracle.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import merge
from merge.checkpoints.tokenizer import read_template
from tests.merge.oracle import load, needs_mergekit, run_mergekit
from tests.merge.vocabularies import make

pytestmark = needs_mergekit
PADDED = {"base": 7, "sft": 2}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
CASES: dict[str, tuple[str, Any, bool, torch.dtype]] = {  # method, tokenizer_source, tied, dtype
    "union": ("task_arithmetic", "union", True, torch.float32),
    "union_untied": ("task_arithmetic", "union", False, torch.float32),
    "union_bf16": ("task_arithmetic", "union", False, torch.bfloat16),
    "union_no_base": ("linear", "union", False, torch.float32),
    "base": ("task_arithmetic", "base", False, torch.float32),
    "model": ("task_arithmetic", "sft", True, torch.float32),
    "model_no_base": ("linear", "ct", True, torch.float32),
    "ties": ("ties", "base", False, torch.float32),
}
CHATS = {"auto": "auto", "chatml": "chatml", "text": TEMPLATE}


@dataclass
class Case:
    ours: Path
    theirs: Path


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("tokenizers")
    jobs, recipes = [], {}
    for name, (method, source, tied, dtype) in (CASES | {f"chat_{chat}": CASES["base"] for chat in CHATS}).items():
        # what TIES trims is chosen among all rows of a table, those that pad it included
        folders = make(root / name, {} if method == "ties" else PADDED, tied, dtype)
        for model, template in (("base", "{{ 1 }}"), ("ct", TEMPLATE), ("sft", TEMPLATE)):
            (folders[model] / "chat_template.jinja").write_text(template)
        settings = {"weight": 0.5} | ({"density": 0.5} if method == "ties" else {})
        listed = [{"model": str(folders[key]), "parameters": settings} for key in ("ct", "sft")]
        data: dict[str, Any] = {"merge_method": method, "models": listed}
        data["tokenizer_source"] = str(folders[source]) if source in folders and source != "base" else source
        if method != "linear":
            data["base_model"] = str(folders["base"])
        if name.startswith("chat_"):
            data["chat_template"] = CHATS[name.removeprefix("chat_")]
        path = root / f"{name}.yml"
        path.write_text(yaml.safe_dump(data))
        jobs.append((path, root / f"theirs-{name}"))
        recipes[name] = path
    run_mergekit(jobs)
    return {
        name: Case(merge.write(merge.Recipe.from_yaml(path), root / f"ours-{name}"), root / f"theirs-{name}")
        for name, path in recipes.items()
    }


def tokens(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    found: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return found


@pytest.mark.parametrize("case", CASES)
def test_rows_are_merged_by_token(case: str, merged: dict[str, Case]) -> None:
    """Every token has the same row, whatever its number: mergekit numbers a union anew each time, and cuts padding."""
    ours, theirs = merged[case].ours, merged[case].theirs
    mine, other = tokens(ours), tokens(theirs)
    assert mine.keys() == other.keys()
    found, expected = load(ours), load(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if not name.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert torch.equal(found[name], tensor), name
            continue
        rows = found[name][[mine[token] for token in mine]], tensor[[other[token] for token in mine]]
        assert torch.equal(*rows), name
        assert len(tensor) == len(other)
    rows = len(found["model.embed_tokens.weight"])
    assert json.loads((ours / "config.json").read_text())["vocab_size"] == rows >= len(mine)


@pytest.mark.parametrize("chat", CHATS)
def test_chat_templates_are_mergekits(chat: str, merged: dict[str, Case]) -> None:
    from transformers import AutoTokenizer

    case = merged[f"chat_{chat}"]
    said = [{"role": "user", "content": "ข้าว"}, {"role": "assistant", "content": "გამარჯობა"}]
    texts = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(said, tokenize=False, add_generation_prompt=prompt)
        for folder in (case.ours, case.theirs)
        for prompt in (False, True)
    ]
    assert texts[:2] == texts[2:] and "ข้าว" in texts[0]
    assert read_template(case.ours) is not None
