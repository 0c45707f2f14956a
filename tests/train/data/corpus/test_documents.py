"""Splits by the hash of a name, and what counts as the same text."""

import unicodedata

from train.data.corpus.documents import as_documents, normalised, split_of


def test_splits_have_about_their_shares_and_never_move() -> None:
    names = [str(i) for i in range(5000)]
    splits = [split_of(name, 0, 0.05, 0.1) for name in names]
    assert abs(splits.count("dev") / 5000 - 0.05) < 0.01
    assert abs(splits.count("test") / 5000 - 0.1) < 0.015
    assert splits[:100] == [split_of(name, 0, 0.05, 0.1) for name in names[:100]]
    assert splits != [split_of(name, 1, 0.05, 0.1) for name in names]


def test_case_spaces_and_punctuation_do_not_make_another_text() -> None:
    assert normalised("The Same, words!") == normalised("the same -- words") == "the same words"


def test_composed_and_decomposed_letters_are_the_same_text() -> None:
    text = "\u1ecd\u0300r\u1ecd\u0300 \u00e0gb\u00e1y\u00e9"
    assert unicodedata.normalize("NFD", text) != text
    assert normalised(unicodedata.normalize("NFD", text)) == normalised(text)
    assert normalised("oro") != normalised(text)


def test_vowel_signs_make_another_text() -> None:
    assert normalised("\u0926\u093f\u0928") != normalised("\u0926\u093e\u0928")  # दिन, दान
    assert normalised("\u0b95\u0bbf") != normalised("\u0b95\u0bc0")  # கி, கீ


def test_passages_are_joined_in_their_order() -> None:
    passages = [{"id": name, "document": name[0], "text": name} for name in ("a1", "b1", "a2")]
    assert as_documents(passages) == [{"id": "a", "text": "a1 a2"}, {"id": "b", "text": "b1"}]
