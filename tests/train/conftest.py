"""A small corpus, tokenizer and model that the train tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toy_text import sentences
from train import base_model
from train.data.corpus import build
from train.settings import BaseModelSettings, CorpusOptions, CorpusSettings, TrainingSettings


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "mine.txt").write_text("\n\n".join(sentences(0, 300)))
    (folder / "english.txt").write_text("\n\n".join(sentences(1, 300)))
    settings = CorpusSettings(source="files", language="xx", dev=0.1, test=0.1, seed=0)
    options = CorpusOptions(path=str(folder / "mine.txt"), english_path=str(folder / "english.txt"))
    build.build(settings, options, folder / "out", folder)
    return folder / "out"


@pytest.fixture(scope="session")
def recipe() -> BaseModelSettings:
    return BaseModelSettings(
        language="xx",
        vocabulary=300,
        hidden_size=16,
        layers=2,
        heads=2,
        feed_forward=32,
        context=128,
        block_size=32,
        tokens=2048,
        batch_tokens=128,
        learning_rate=1e-2,
        min_lr_ratio=0.1,
        warmup_ratio=0.1,
        weight_decay=0.1,
        aligned_fraction=0.0,
        aligned_chapters=0.0,
        repeated_fraction=0.25,
        withheld_chapters=0.0,
        seed=0,
    )


@pytest.fixture(scope="session")
def training() -> TrainingSettings:
    """A training on the blocks of the recipe, 16 steps of 4 blocks."""
    return TrainingSettings(
        tokens=2048,
        schedule_tokens=2048,
        batch_tokens=128,
        block_size=32,
        learning_rate=1e-2,
        min_lr_ratio=0.1,
        warmup_ratio=0.1,
        weight_decay=0.1,
        seed=0,
    )


@pytest.fixture(scope="session")
def model_dir(corpus_dir: Path, recipe: BaseModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base_model.prepare(corpus_dir, recipe, folder)
    return folder / "model"
