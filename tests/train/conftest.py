"""A small corpus, tokenizer and model that the train tests share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from train import base_model as base
from train.data.corpus import build as corpus

WORDS = [
    a + b + c for a in ("ba", "ko", "mi", "tu", "se") for b in ("la", "ri", "no", "fu") for c in ("", "ka", "de", "s")
]


def sentences(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, weights=range(1, len(WORDS) + 1), k=60)) + "." for _ in range(count)]


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "mine.txt").write_text("\n\n".join(sentences(0, 300)))
    (folder / "english.txt").write_text("\n\n".join(sentences(1, 300)))
    settings = {
        "source": "files",
        "language": "xx",
        "path": str(folder / "mine.txt"),
        "english_path": str(folder / "english.txt"),
        "dev": 0.1,
        "test": 0.1,
        "seed": 0,
    }
    corpus.build(settings, folder / "out", folder)
    return folder / "out"


@pytest.fixture(scope="session")
def recipe() -> dict[str, Any]:
    return {
        "language": "xx", "vocabulary": 300, "hidden_size": 16, "layers": 2, "heads": 2, "feed_forward": 32, "context": 128, "block_size": 32, "tokens": 2048, "aligned_share": 0.0,
        "aligned_chapters": 0.0, "repeated_share": 0.25, "seed": 0, "batch_tokens": 128, "learning_rate": 1e-2, "min_lr_ratio": 0.1, "warmup_ratio": 0.1, "weight_decay": 0.1,
        "save_every_tokens": 512,
    }  # fmt: skip


@pytest.fixture(scope="session")
def model_dir(corpus_dir: Path, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base.prepare(corpus_dir, recipe, folder)
    return folder / "model"
