"""The table of stage kinds: a new kind is one row and one function, and every part of the pipeline knows it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BadInput
from pipeline import sweep, tracking
from pipeline.config import validate
from pipeline.cost.estimate import stage_work
from pipeline.cost.shape import model_shape
from pipeline.execute import Executor, Job, maker_of
from pipeline.journal import Journal
from pipeline.run.display import Estimates
from pipeline.stages import stage
from pipeline.stages.stage import STAGE_TYPES, StageType
from pipeline.store import Store
from tests.pipeline import toy
from tests.pipeline.toy_stage import toy_stage


def count_words(job: Job) -> None:
    words = (job.folders["corpus"] / "text").read_text().split()
    (job.out / "count").write_text(str(len(words)))
    job.note = f": {len(words)} words"


def write_text(job: Job) -> None:
    (job.out / "text").write_text("a b c")


def test_every_maker_can_be_imported() -> None:
    assert all(callable(maker_of(kind)) for kind in STAGE_TYPES)


def test_the_table_is_light() -> None:
    script = (
        "import sys, pipeline.stages.stage;"
        " print([name for name in ('torch', 'hydra', 'pydantic') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_a_new_kind_is_a_row_and_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = StageType("corpus", f"{__name__}:write_text", 1, "data", 3)
    monkeypatch.setitem(stage.STAGE_TYPES, "corpus", text)
    monkeypatch.setitem(
        stage.STAGE_TYPES, "words", StageType("words", f"{__name__}:count_words", 1, "score", 7, tracked=True)
    )
    corpus = toy_stage("corpus", "toy")
    words = toy_stage("words", "toy", {"split": "test"}, {"corpus": corpus})
    store, runs = Store(tmp_path / "store"), []
    config = sweep.expand(("experiment=test", "tracking.wandb=offline"), multirun=False).configs[0]
    monkeypatch.setattr(tracking, "start", lambda config, folder, name, *about: runs.append(name))
    track = tracking.tracker(config, tmp_path)
    assert Estimates(store, {}).total((corpus, words)) == 10
    journal = Journal(tmp_path / "journal")
    view = toy.view(store, (corpus, words), journal)
    Executor(store, (corpus, words), journal, track=track).compute((corpus, words))
    entry = store.find(words)
    assert entry and (entry.path / "count").read_text() == "3"
    assert view.new_lines()[-1].endswith(" s: 3 words")
    assert runs == ["words toy"]
    assert stage_work(corpus, config, model_shape(config)).written > 0


def test_what_chooses_trains_or_scores_is_tracked() -> None:
    assert {kind.name for kind in STAGE_TYPES.values() if kind.tracked} == {"base", "ct", "sft", "tune", "eval"}


def test_a_revision_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = toy_stage("corpus", "toy").key
    changed = replace(STAGE_TYPES["corpus"], revision=STAGE_TYPES["corpus"].revision + 1)
    monkeypatch.setitem(STAGE_TYPES, "corpus", changed)
    assert toy_stage("corpus", "toy").key != before


def test_a_guess_for_an_unknown_kind_is_refused() -> None:
    values = sweep.expand(("experiment=test",), multirun=False).configs[0].model_dump()
    values["compute"]["stage_seconds"] = {"evall": 3}
    with pytest.raises(BadInput, match=r"^compute\.stage_seconds\.evall: unknown kind of stage. Did you mean eval\?$"):
        validate(values)
