import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadInput
from tests.train.conftest import sentences
from train.data import families, instructions
from train.data.corpus.build import read_jsonl

TEXTS = sentences(2, 200)
VOCABULARY = families.Vocabulary(TEXTS)


@given(seed=st.integers(0, 10_000), family=st.sampled_from(sorted(families.WORD_FAMILIES)))
def test_word_items_are_sound(seed: int, family: str) -> None:
    rng = random.Random(seed)
    words = rng.choice(TEXTS).split()
    item = families.WORD_FAMILIES[family](words, VOCABULARY, rng)
    if item is None:
        return
    assert len(item.choices) == len(set(item.choices)) == 4
    right, text = item.choices[item.answer], [families.bare(word) for word in item.text.split()]
    if family == "next":
        assert f"{item.text} {right}" in " ".join(words)
    if family == "blank":
        assert item.text.replace(families.BLANK, right).replace(".", "") in " ".join(words).replace(".", "")
    if family == "lookup":
        asked = item.question.removeprefix("Which word comes after ").removesuffix("?")
        assert text[text.index(asked) + 1] == right and set(item.choices) <= set(text)
    else:
        assert not set(item.choices) & set(text) - {right}


def test_distractors_are_as_frequent_as_the_answer() -> None:
    rng = random.Random(0)
    items = [item for _ in range(3000) if (item := families.next_word(rng.choice(TEXTS).split(), VOCABULARY, rng))]
    assert 0.1 < sum(item.trivial == item.answer for item in items) / len(items) < 0.4


@pytest.mark.parametrize(
    ("verse", "topic"),
    [
        ("The king sat on his throne.", "kings"),
        ("They ate bread.", "food"),
        ("The king ate bread.", None),
        ("And he said, Go.", None),
    ],
)
def test_a_topic_needs_keywords_of_one_topic_only(verse: str, topic: str | None) -> None:
    assert families.topic_of(verse) == topic


def test_labels_are_balanced() -> None:
    items = {
        label: [families.genre(f"text {i}", label) for i in range(n)] for label, n in (("law", 30), ("gospel", 12))
    }
    chosen = instructions.balanced(items, 60, random.Random(0))
    assert len(chosen) == 24 and sum(item.choices[item.answer] == "law" for item in chosen) == 12


def build(corpus_dir: Path, out: Path, **changes: Any) -> None:
    settings = {
        "language": "xx",
        "families": list(families.QUESTIONS),
        "sft_items": 40,
        "eval_items": 20,
        "sft_path": None,
        "seed": 0,
    }
    instructions.build(corpus_dir, {**settings, **changes}, out)


def test_instructions_and_items_share_templates_but_not_content(corpus_dir: Path, tmp_path: Path) -> None:
    build(corpus_dir, tmp_path / "a")
    build(corpus_dir, tmp_path / "b")
    sft = read_jsonl(tmp_path / "a" / "sft.jsonl")
    assert {row["family"] for row in sft} == {"next", "blank", "lookup"}  # no aligned verses here
    items = read_jsonl(tmp_path / "a" / "tasks" / "next_en.test.jsonl")
    trained = {row["prompt"] for row in sft}
    assert items and all(item["prompt"].startswith("Which word comes next?\n") for item in items)
    assert all(
        row["prompt"].endswith("\nWhich word fills the blank?\nAnswer:") for row in sft if row["family"] == "blank"
    )
    assert not trained & {item["prompt"] for item in items}
    for path in sorted((tmp_path / "a").rglob("*.json*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_own_instructions(corpus_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"instruction": "Say yes.", "input": "", "output": "yes"}) + "\n")
    build(corpus_dir, tmp_path / "out", sft_path=str(path))
    assert read_jsonl(tmp_path / "out" / "sft.jsonl") == [
        {"prompt": "Say yes.\nAnswer:", "output": "yes", "family": "own"}
    ]
    assert families.prompt("Say yes.", "A text.") == "A text.\nSay yes.\nAnswer:"
    path.write_text(json.dumps({"instruction": "Say yes."}) + "\n")
    with pytest.raises(BadInput, match="sft.path: .* line 1 lacks the text field 'input'"):
        build(corpus_dir, tmp_path / "other", sft_path=str(path))


def test_an_unknown_family_is_named(corpus_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="eval.families: 'sums' is unknown"):
        build(corpus_dir, tmp_path / "out", families=["next", "sums"])
