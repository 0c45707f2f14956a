"""A new family of tasks is one function: instructions and items are made of it like of any other."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from common.files import read_jsonl, write_jsonl
from train.data import instructions, questions
from train.data.questions import Question, Vocabulary, multiple_choice
from train.settings import ItemsSettings


def test_a_new_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (questions.QUESTIONS, questions.WORD_FAMILIES):
        monkeypatch.setitem(table, "longest", None)  # so that it is gone after the test

    @questions.word_family("longest", "Which word is the longest?")
    def longest(words: list[str], vocabulary: Vocabulary, rng: random.Random) -> Question | None:
        text = questions.random_window(words, 5, 8, vocabulary.segmenter, rng)
        by_length = sorted({questions.strip_punctuation(word) for word in text}, key=len)
        if len(by_length) < 4:
            return None
        question = questions.QUESTIONS["longest"]
        return multiple_choice(" ".join(text), question, by_length[-1], by_length[:3], vocabulary, rng)

    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(80)]
    for language in ("xx", "en"):
        for split in ("train", "dev", "test"):
            rows = [{"id": f"{split}{n}", "text": " ".join(rng.choices(words, k=60))} for n in range(8)]
            (tmp_path / "corpus" / "text").mkdir(parents=True, exist_ok=True)
            write_jsonl(tmp_path / "corpus" / "text" / f"{language}.{split}.jsonl", rows)
    settings = ItemsSettings(language="xx", families=["longest"], sft_items=10, eval_items=8, seed=0)
    instructions.build(tmp_path / "corpus", settings, tmp_path / "out")
    items = read_jsonl(tmp_path / "out" / "tasks" / "longest_xx.test.jsonl")
    assert len(items) == 8
    assert all(len(item["choices"][item["answer"]]) == max(map(len, item["choices"])) for item in items)
    assert len(read_jsonl(tmp_path / "out" / "sft.jsonl")) == 10
