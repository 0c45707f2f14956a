"""What is added often is added in one place: a kind of stage, a baseline, a setting of the optimizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from common.errors import BadInput
from common.settings import Settings
from pipeline import sweep, tracking
from pipeline.baselines import BASELINES, Baseline
from pipeline.cost.estimate import stage_work
from pipeline.cost.shape import model_shape
from pipeline.execute import Executor, Job
from pipeline.journal import Journal
from pipeline.run.display import Estimates
from pipeline.stages import STAGE_TYPES
from pipeline.stages.cell import CellPlanner, plan_cell
from pipeline.stages.stage import Inputs, Stage, StageType
from pipeline.stages.training import plan_sft, training_settings
from pipeline.store import Store
from tests.pipeline import toy
from train.settings import TrainingSettings


class WordsSettings(Settings):
    split: str


def write_text(job: Job) -> None:
    (job.out / "text").write_text("a b c")


def count_words(job: Job[WordsSettings, Settings]) -> None:
    words = (job.folders["corpus"] / "text").read_text().split()
    (job.out / "count").write_text(f"{len(words)} of {job.settings.split}")
    job.note = f": {len(words)} words"


def test_a_new_kind_is_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor, the estimates, the costs and the tracking know it."""
    corpus = Stage(StageType("corpus", write_text, 1, "data", 3), "toy")
    kind = StageType("words", count_words, 1, "score", 7, tracked=True)
    words = Stage(kind, "toy", WordsSettings(split="test"), {"corpus": corpus})
    store, runs = Store(tmp_path / "store"), []
    config = sweep.expand(("experiment=test", "tracking.wandb=offline"), multirun=False).configs[0]
    monkeypatch.setattr(tracking, "start", lambda config, folder, name, *about: runs.append(name))
    track = tracking.tracker(config, tmp_path)
    assert Estimates(store, {}).total((corpus, words)) == 10
    journal = Journal(tmp_path / "journal")
    view = toy.view(store, (corpus, words), journal)
    Executor(store, (corpus, words), journal, track=track).compute((corpus, words))
    entry = store.find(words)
    assert entry and (entry.path / "count").read_text() == "3 of test"
    assert view.new_lines()[-1].endswith(" s: 3 words")
    assert runs == ["words toy"]
    assert stage_work(corpus, config, model_shape(config)).written > 0


def test_a_new_baseline_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """SFT at half its learning rate is planned, scored, and merged like any other."""

    def gentle(cell: CellPlanner) -> Stage:
        sft = cell.config.sft.model_copy(update={"learning_rate": cell.config.sft.learning_rate / 2})
        config = cell.config.model_copy(update={"sft": sft})
        return plan_sft(f"en-gentle-s{config.seed}", config, cell.sft_parents(cell.base))

    monkeypatch.setitem(BASELINES, "gentle", Baseline("gentle", "gentle SFT", gentle, ct_budgets=False))
    merged = "{of: [ct, gentle], recipe: {method: linear, weight: 0.5}, grid: {}}"
    asked = ("experiment=test", "eval.baselines=[sft,gentle]", f"+merge.methods.with_gentle={merged}")
    (config,) = sweep.expand(asked, multirun=False).configs
    cell = plan_cell(config, Inputs())
    gentle_sft, sft = cell.checkpoints["gentle"], cell.checkpoints["sft"]
    assert gentle_sft.settings.learning_rate == sft.settings.learning_rate / 2
    assert cell.evals["gentle"].parents["checkpoint"].key == gentle_sft.key
    assert cell.merges["with_gentle"].parents["gentle"].key == gentle_sft.key
    assert cell.budget_of("gentle") == 0 and cell.evals["gentle"].method == "gentle"


class WithBeta(TrainingSettings):
    """The line that a new setting of the optimizer takes in train/settings.py."""

    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95


def test_a_new_setting_of_the_optimizer_is_one_line() -> None:
    """It is in the key where it differs from its default, reaches the trainer with its type, and has its bounds."""
    (config,) = sweep.expand(["experiment=test"], multirun=False).configs
    plain = training_settings(config, config.sft, schedule_tokens=config.sft.tokens)
    usual, changed = WithBeta.pick(plain), WithBeta.pick(plain, beta2=0.99)
    assert usual.key_content() == plain.key_content()
    assert changed.key_content() == {**plain.key_content(), "beta2": 0.99}
    stage = plan_cell(config, Inputs()).checkpoints["sft"]
    keys = {replace(stage, settings=settings).key for settings in (plain, usual, changed)}
    assert len(keys) == 2 and stage.key in keys
    assert WithBeta.model_validate(json.loads(changed.model_dump_json())) == changed
    with pytest.raises(ValidationError, match="less than 1"):
        changed.replace(beta2=1.0)


def test_a_name_that_no_code_reads_is_rejected() -> None:
    (config,) = sweep.expand(["experiment=test"], multirun=False).configs
    with pytest.raises(ValidationError, match="beta2"):
        training_settings(config, config.sft, schedule_tokens=4096, beta2=0.99)
    with pytest.raises(ValidationError, match="schedule_tokens"):
        TrainingSettings.pick(config.model)  # which has none of the required ones


def test_a_revision_changes_the_key() -> None:
    corpus = Stage(STAGE_TYPES["corpus"], "toy")
    changed = replace(corpus.type, revision=corpus.type.revision + 1)
    assert replace(corpus, type=changed).key != corpus.key


def test_a_guess_for_an_unknown_kind_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^compute\.stage_seconds\.evall: unknown kind of stage. Did you mean eval\?$"):
        sweep.expand(("experiment=test", "+compute.stage_seconds.evall=3"), multirun=False)
