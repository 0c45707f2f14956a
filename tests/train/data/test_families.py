"""Questions from a passage: sound, and their distractors fair."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toy_text import sentences
from train.data import families

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
