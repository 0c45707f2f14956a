"""Checkpoints and merges stand in one table, so they are scored in the same precision, whatever their files hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import sweep
from pipeline.execute import Job
from pipeline.stages import scoring
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs, Stage
from tests.eval.conftest import tiny_model
from tests.eval.conftest import tokenizer as tokenizer  # noqa: PLC0414  # a fixture


def folder(path: Path, seed: int, tokenizer: Any) -> Path:
    """A tiny checkpoint in bfloat16."""
    import torch

    tiny_model(seed).to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_and_a_merge_of_16_bit_checkpoints_are_scored_alike(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    given = {role: folder(tmp_path / role, seed, tokenizer) for seed, role in enumerate(("base", "ct", "sft"))}
    sources = [f"model.path={given['base']}", f"ct.source={given['ct']}", f"sft.source={given['sft']}"]
    overrides = ["experiment=test", f"eval.dtype={dtype}", *sources]
    cell = plan_cell(sweep.expand(overrides, multirun=False).configs[0], Inputs("base", "ct", "sft"))
    (tmp_path / "items" / "tasks").mkdir(parents=True)
    (tmp_path / "corpus" / "text").mkdir(parents=True)
    text = json.dumps({"id": "1", "text": "pachiyambi mulungu adalenga kumwamba"}) + "\n"
    for language in ("nya", "en"):
        (tmp_path / "corpus" / "text" / f"{language}.test.jsonl").write_text(text)
    recipe = f"{{method: linear, base: {given['base']}, models: {{ct: {{path: {given['ct']}, weight: 1.0}}}}}}"
    (tmp_path / "merge").mkdir()
    (tmp_path / "merge" / "merge.yml").write_text(recipe)
    seen: list[str] = []
    monkeypatch.setattr("eval.language_model.PackedLM.loglikelihood_rolling", watched(seen))
    scores = {method: score(cell.evals[method], tmp_path, given) for method in ("ct", "ties_sv_1")}
    assert seen and set(seen) == {f"torch.{dtype}"}
    assert scores["ct"] == scores["ties_sv_1"]  # the merge is CT alone


def watched(seen: list[str]) -> Any:
    from lm_eval.models.huggingface import HFLM

    def rolling(self: Any, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        seen.extend(str(parameter.dtype) for parameter in self.model.parameters())
        return HFLM.loglikelihood_rolling(self, requests, disable_tqdm)

    return rolling


def score(stage: Stage, root: Path, given: dict[str, Path]) -> str:
    """Makes an evaluation whose parents lie in the folder; its scores."""
    places = {**given, "model": given["base"], "checkpoint": given["ct"]}
    folders = {role: places.get(role, root / role) for role in stage.parents}
    out = root / stage.slug
    out.mkdir()
    scoring.run_eval(Job(stage, out, root, folders))
    return (out / "scores.jsonl").read_text()
