"""The text that the small base model's recipe takes and leaves."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from common.errors import BadInput
from common.files import read_jsonl, write_jsonl
from train import base_model as base
from train.data.corpus.documents import hash_fraction, is_withheld
from train.settings import BaseModelSettings

CHAPTERS = [f"1.{number}" for number in range(200)]


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A corpus of 200 training chapters whose English and whose language name their chapter in every word."""
    (tmp_path / "text").mkdir()
    words = {name: " ".join([f"e{name.replace('.', 'x')}"] * 40) for name in CHAPTERS}
    write_jsonl(tmp_path / "text" / "en.train.jsonl", ({"id": name, "text": words[name]} for name in CHAPTERS))
    verses = ({"id": f"{name}.1", "split": "train", "xx": f"x {name}", "en": words[name]} for name in CHAPTERS)
    write_jsonl(tmp_path / "verses.jsonl", verses)
    return tmp_path


def test_withheld_chapters_are_the_stated_share_and_others_than_the_splits_hash_takes() -> None:
    withheld = [name for name in CHAPTERS if is_withheld(name, 0.25, 0)]
    assert 35 <= len(withheld) <= 65
    assert not any(is_withheld(name, 0.0, 0) for name in CHAPTERS)
    low = [name for name in CHAPTERS if hash_fraction(name, 0) < 0.25]
    assert set(withheld) != set(low) and set(withheld) & set(low)
    assert set(withheld) <= {name for name in CHAPTERS if is_withheld(name, 0.5, 0)}


def test_blocks_and_tokenizer_hold_nothing_of_withheld_chapters(marked: Path, recipe: BaseModelSettings) -> None:
    settings = recipe.replace(tokens=20_480, aligned_fraction=0.2, aligned_chapters=0.5, withheld_chapters=0.25)
    base.prepare(marked, settings, marked / "out")
    tokenizer = base.packing.load_tokenizer(marked / "out" / "model")
    blocks = tokenizer.batch_decode(np.load(marked / "out" / "blocks" / "blocks.npy").tolist())
    whole = itertools.chain(*(block.replace(base.END, " ").split()[1:-1] for block in blocks))  # a block cuts words
    read = {word for word in whole if word.startswith("e1x")}
    withheld = {f"e{name.replace('.', 'x')}" for name in CHAPTERS if is_withheld(name, 0.25, 0)}
    assert read and not read & withheld
    vocabulary = set(tokenizer.get_vocab())
    assert not any(f"Ġ{word}" in vocabulary for word in withheld)


def test_aligned_chapters_are_a_share_of_all_and_none_withheld(marked: Path, recipe: BaseModelSettings) -> None:
    settings = recipe.replace(aligned_chapters=0.5, withheld_chapters=0.25)
    documents = base.aligned_documents(marked, settings, random.Random(0))
    assert len(documents) == 100
    names = {line.removeprefix("x ") for text in documents for line in text.split("\n") if line.startswith("x ")}
    assert not any(is_withheld(name, 0.25, 0) for name in names)
    plain = base.aligned_documents(marked, settings.replace(withheld_chapters=0.0), random.Random(0))
    assert {row["id"].rpartition(".")[0] for row in read_jsonl(marked / "verses.jsonl")} > names
    assert len(plain) == 100
    with pytest.raises(BadInput, match="only .* of 200"):
        base.aligned_documents(marked, settings.replace(aligned_chapters=0.9), random.Random(0))
