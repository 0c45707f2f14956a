"""The cipher language: exact, one to one, and of the share that was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.corpus.sources import WORD, cipher_dictionary, encipher, english_bible

TEXTS = [text for _, text in zip(range(3000), (text for _, text in english_bible()), strict=False)]


@pytest.fixture(scope="module")
def words() -> dict[str, str]:
    return cipher_dictionary(TEXTS, 0.6, seed=0)


def test_the_share_of_types_and_no_two_alike(words: dict[str, str]) -> None:
    types = {word.lower() for text in TEXTS for word in WORD.findall(text)}
    assert abs(len(words) / len(types) - 0.6) < 0.03
    assert len(set(words.values())) == len(words)
    assert not set(words.values()) & types


def test_every_text_can_be_read_back(words: dict[str, str]) -> None:
    back = {invented: word for word, invented in words.items()}
    for text in TEXTS[:500]:
        secret = encipher(text, words)
        assert encipher(secret, back).lower() == text.lower()
        assert len(secret.split()) == len(text.split())


def test_the_same_words_always(words: dict[str, str]) -> None:
    assert cipher_dictionary(reversed(TEXTS), 0.6, seed=0) == words
    assert cipher_dictionary(TEXTS, 0.6, seed=1) != words


@given(st.text(max_size=40))
def test_without_words_nothing_changes(text: str) -> None:
    assert encipher(text, {}) == text


def test_capitals_stay() -> None:
    assert encipher("Light, light; LIGHT!", {"light": "mbo"}) == "Mbo, mbo; MBO!"
