"""Whether choices were scored in packed rows is in the record of the stage that scored them, and on the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.execute import Executor, Job
from pipeline.journal import Journal
from pipeline.stages import scoring, tuning
from pipeline.stages.scoring import EvalSettings, ScoreOptions
from pipeline.stages.stage import Stage
from pipeline.stages.tuning import TuneSettings
from pipeline.store import Store
from tests.eval.conftest import make_items, tiny_model, write_jsonl
from tests.eval.conftest import tokenizer as tokenizer  # noqa: PLC0414  # a fixture
from tests.pipeline import toy
from tests.pipeline.toy_stage import toy_stage

ALL_ITEMS: dict[str, Any] = {"limit": None, "max_chars": None}
OPTIONS = ScoreOptions(device="cpu", threads=1, batch_tokens=512)
WAYS = {True: ", choices in packed rows", False: ", choices row by row"}


def items(job: Job) -> None:
    write_jsonl(job.out / "tasks" / "next_nya.dev.jsonl", make_items("next", "nya", 4, 0))


def corpus(job: Job) -> None:
    write_jsonl(job.out / "text" / "nya.dev.jsonl", [{"id": "1", "text": "pachiyambi mulungu adalenga"}])


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: Any) -> Stage:
    tiny_model(0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return toy_stage("model", "given", {"checksum": "1"}, options={"path": str(tmp_path / "model")})


def made(stage: Stage, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """The record of a stage, and what the console printed when it ended."""
    makers = {"items": items, "corpus": corpus, "eval": scoring.run_eval, "tune": tuning.run_tune}
    store, journal = Store(tmp_path / "store"), Journal(tmp_path / "journal.jsonl")
    view = toy.view(store, [stage], journal)
    Executor(store, [stage], journal, maker=makers.__getitem__).compute([stage], stop_at_failure=True)
    entry = store.find(stage)
    assert entry
    return dict(entry.record), view.new_lines()[-1]


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("kind", ["eval", "tune"])
def test_the_decision_is_recorded(
    kind: str, packs: bool, checkpoint: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.language_model.is_packable", lambda config: packs)
    parents = {"items": toy_stage("items", "test"), "corpus": toy_stage("corpus", "test")}
    if kind == "eval":
        settings = EvalSettings(split="dev", language="nya", tasks=(), **ALL_ITEMS)
        stage = Stage(scoring.EVAL, "test", settings, {**parents, "checkpoint": checkpoint}, OPTIONS)
    else:
        tuned = TuneSettings(tries=({}, {}), metric="acc", language="nya", seed=0, **ALL_ITEMS)
        tries = {"try-0": checkpoint, "try-1": checkpoint}
        stage = Stage(tuning.TUNE, "test", tuned, {**parents, **tries}, OPTIONS)
    record, said = made(stage, tmp_path)
    assert record["packed_rows"] is packs
    assert said.endswith(WAYS[packs])


def test_scores_without_choices_record_none(checkpoint: Stage, tmp_path: Path) -> None:
    parents = {"corpus": toy_stage("corpus", "test"), "items": toy_stage("items", "test"), "try-0": checkpoint}
    settings = TuneSettings(tries=({},), metric="bits_per_byte", language="nya", seed=0, **ALL_ITEMS)
    record, said = made(Stage(tuning.TUNE, "test", settings, parents, OPTIONS), tmp_path)
    assert "packed_rows" not in record and "choices" not in said
