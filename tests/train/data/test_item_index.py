"""The index of items, held against the definition of the Jaccard similarity."""

from __future__ import annotations

import random
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toy_text import random_words
from train.data import contamination


def shingles(text: str) -> set[tuple[str, ...]]:
    return set(zip(*(text.split()[start:] for start in range(contamination.SHINGLE)), strict=False))


def jaccard(first: str, second: str) -> float:
    return len(shingles(first) & shingles(second)) / len(shingles(first) | shingles(second))


@given(st.integers(0, 1000), st.integers(0, 59))
def test_an_edited_item_is_near_exactly_if_its_jaccard_similarity_says_so(seed: int, position: int) -> None:
    rng = random.Random(seed)
    item = random_words(rng, 60)
    words = item.split()
    words[position] = "edited"
    changed = " ".join(words)
    before, matches, after = contamination.ItemIndex([item]).search(
        [random_words(rng, 5), f"{random_words(rng, 100)} {changed} {random_words(rng, 100)}", ""]
    )
    assert not before and not after
    similarity = matches[0].jaccard if matches else 0.0
    if jaccard(item, changed) >= contamination.NEAR:
        assert similarity >= contamination.NEAR
    elif similarity:
        assert similarity == pytest.approx(jaccard(item, changed), abs=0.1)


@pytest.mark.parametrize(
    ("words", "count"), [("தமிழ் மொழி", 2), ("བོད་སྐད་ཡིག", 3), ("don't stop-it", 4), ("नमस्ते दुनिया", 2), ("", 0)]
)
def test_vowel_signs_do_not_cut_words(words: str, count: int) -> None:
    assert len(contamination.WordHasher().hashes(words)) == count


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(1, 13))
def test_equal_words_have_equal_grams(words: list[int], count: int) -> None:
    hashes: Any = np.array(words, np.uint64)
    whole = contamination.gram_hashes(hashes, count)
    assert len(whole) == max(0, len(words) - count + 1)
    for start in range(len(whole)):
        assert whole[start] == contamination.gram_hashes(hashes[start : start + count], count)[0]


def test_a_decomposed_copy_of_an_item_is_found() -> None:
    item = " ".join(f"\u1ecdr\u1ecd\u0300{word}" for word in random_words(random.Random(0), 30).split())
    copy = unicodedata.normalize("NFD", item)
    assert copy != item
    (matches,) = contamination.ItemIndex([item]).search([copy])
    assert matches[0].jaccard == 1.0 and matches[0].grams
