"""Questions from a passage: sound, and their distractors fair."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toy_text import sentences
from train.data import questions

TEXTS = sentences(2, 200)
VOCABULARY = questions.Vocabulary(TEXTS)
SCRIPTS = {"Kashmiri": " ", "Tamil": " ", "Dzongkha": "\u0f0b"}  # what stands between two units
LETTERS = {"Kashmiri": "ابتجدرسکلمنوی", "Tamil": "கசடதபறயரலவழள", "Dzongkha": "ཀཁགངཅཆཇཉཏཐདནཔཕབམ"}
WORDS = {name: ["".join(random.Random(n).sample(of, 3)) for n in range(80)] for name, of in LETTERS.items()}


@given(seed=st.integers(0, 10_000), family=st.sampled_from(sorted(questions.WORD_FAMILIES)))
def test_word_items_are_sound(seed: int, family: str) -> None:
    rng = random.Random(seed)
    words = rng.choice(TEXTS).split()
    item = questions.WORD_FAMILIES[family](words, VOCABULARY, rng)
    if item is None:
        return
    assert len(item.choices) == len(set(item.choices)) == 4
    right, text = item.choices[item.answer], [questions.strip_punctuation(word) for word in item.text.split()]
    assert item.prompt.endswith(item.text if family == "next" else f"\n{item.question}\nAnswer:")
    if family in ("next", "route"):
        assert f"{item.text} {right}" in " ".join(words)
    if family == "blank":
        assert item.text.replace(questions.BLANK, right).replace(".", "") in " ".join(words).replace(".", "")
    if family == "lookup":
        asked = item.question.removeprefix("Which word comes after ").removesuffix("?")
        assert text[text.index(asked) + 1] == right and set(item.choices) <= set(text)
    else:
        assert not set(item.choices) & set(text) - {right}


def test_distractors_are_as_frequent_as_the_answer() -> None:
    rng = random.Random(0)
    items = [item for _ in range(3000) if (item := questions.next_word(rng.choice(TEXTS).split(), VOCABULARY, rng))]
    assert 0.1 < sum(item.trivial == item.answer for item in items) / len(items) < 0.4


def test_route_asks_what_next_asks_where_the_text_alone_does_not() -> None:
    rng = random.Random(3)
    made = {
        name: [item for _ in range(2000) if (item := make(rng.choice(TEXTS).split(), VOCABULARY, rng))]
        for name, make in (("next", questions.next_word), ("route", questions.route))
    }
    lengths = {name: {len(item.text.split()) for item in items} for name, items in made.items()}
    assert lengths["next"] == lengths["route"] == set(range(8, 15))
    assert {item.question for items in made.values() for item in items} == {"Which word comes next?"}
    (item,) = {item.prompt.replace(item.text, "TEXT") for item in made["route"]}
    assert item == "TEXT\nWhich word comes next?\nAnswer:"


@pytest.mark.parametrize("script", SCRIPTS)
def test_route_works_in_every_script(script: str) -> None:
    texts = [SCRIPTS[script].join(rng.choices(WORDS[script], k=70)) for rng in map(random.Random, range(60))]
    vocabulary = questions.Vocabulary(texts)
    rng = random.Random(0)
    documents = [vocabulary.segmenter.split(text) for text in texts]
    items = [item for _ in range(300) if (item := questions.route(rng.choice(documents), vocabulary, rng))]
    assert len(items) > 20
    for item in items:
        between = SCRIPTS[script]
        continued = item.text.removesuffix(between) + between + item.choices[item.answer]
        assert any(continued in text for text in texts)
        assert item.prompt == f"{item.text}\nWhich word comes next?\nAnswer:"


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
    assert questions.topic_of(verse) == topic
