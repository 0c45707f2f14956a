"""Tuning holds one merged model at a time, and its scores are those of merges that are loaded one by one."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

import merge
from eval import harness, task_set
from merge.engine import in_memory
from pipeline.stages.tuning import scores_of_merges
from tests.common.test_special_tokens import tokenizer_with
from tests.eval.conftest import make_items, tiny_model, write_jsonl


@pytest.fixture
def recipes(tmp_path: Path) -> list[merge.Recipe]:
    for seed, name in enumerate(("base", "ct", "sft")):
        tiny_model(seed).save_pretrained(tmp_path / name)
        tokenizer_with("$A").save_pretrained(tmp_path / name)
    models = {name: {"path": tmp_path / name} for name in ("ct", "sft")}
    how = {"method": "task_arithmetic", "base": tmp_path / "base", "models": models}
    return [merge.Recipe.from_dict(how | {"lambda": scale}) for scale in (0.1, 0.5, 1.0)]


@pytest.mark.parametrize("converted", [False, True])
def test_one_merged_model_is_alive_at_a_time(
    recipes: list[merge.Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted: bool
) -> None:
    write_jsonl(tmp_path / "items" / "next_nya.test.jsonl", make_items("next", "nya", 4, 0))
    tasks, tokenizer = task_set.prepare(tmp_path / "items"), tokenizer_with("$A")
    alone = [harness.evaluate(merge.load(recipe), tokenizer, tasks).records for recipe in recipes]
    gc.collect()
    made: list[weakref.ref[Any]] = []
    make = in_memory._merge

    def watched(*arguments: Any) -> Any:
        assert not [model for model in made if model() is not None]  # gone before the next is made
        models = make(*arguments)
        made.extend(weakref.ref(model) for model in models)
        return models

    monkeypatch.setattr(in_memory, "_merge", watched)
    monkeypatch.setattr(in_memory, "AT_ONCE", 1)
    if converted:
        monkeypatch.setattr(in_memory, "_sink", lambda *_: None)
    found = [scores.records for scores in scores_of_merges(recipes, tokenizer, tasks, "cpu", {})]
    assert len(made) == 3 and found == alone
