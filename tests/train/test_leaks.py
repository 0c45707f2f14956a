"""Leaks planted in a corpus are found, and nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from train.data import contamination as leaks
from train.data.corpus.build import read_jsonl, write_jsonl

VOCABULARY = [
    first + last
    for first in ("ba", "ko", "mi", "tu", "se", "wa", "ri", "no")
    for last in ("la", "ri", "no", "fu", "ke", "ndi", "mba", "zo", "ta")
]


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=words))


@pytest.fixture
def planted(tmp_path: Path) -> tuple[list[dict[str, str]], list[Path]]:
    """Items, and a corpus in which some of them stand."""
    rng = random.Random(0)
    own = {name: text(rng, 80).split() for name in ("clean", "verbatim", "near", "part", "far")} | {
        "whole": text(rng, 9).split(),
        "short": text(rng, 7).split(),
    }
    changed = list(own["near"])
    changed[20] = "changed"
    far = [
        word if place % 6 else "other" for place, word in enumerate(own["far"])
    ]  # every sixth word: no 13 in a row, and few shingles
    documents = [text(rng, 300) for _ in range(200)]
    inside = {
        3: " ".join(own["verbatim"]).upper().replace(" ", ", "),
        50: " ".join(changed),
        90: " ".join(own["part"][5:25]),
        120: " ".join(far),
    }
    inside |= {150: " ".join(own["whole"]), 170: " ".join(own["short"])}
    for place, passage in inside.items():
        documents[place] = f"{documents[place][:500]} {passage}. {documents[place][500:]}"
    files = [tmp_path / f"{number:05d}.parquet" for number in range(3)]
    for number, file in enumerate(files):
        rows = documents[number::3]
        parquet.write_table(pyarrow.table({"id": [f"{number}.{i}" for i in range(len(rows))], "text": rows}), file)
    write_jsonl(tmp_path / "sft.jsonl", [{"prompt": "A clean one", "output": "is here"}])
    items = [
        {"task": "long" if len(words) > 9 else "small", "id": name, "text": " ".join(words)}
        for name, words in own.items()
    ]
    return items, [*files, tmp_path / "sft.jsonl"]


def test_what_was_planted_is_found_and_nothing_else(
    planted: tuple[list[dict[str, str]], list[Path]], tmp_path: Path
) -> None:
    items, files = planted
    result = leaks.report(items, files, tmp_path, tmp_path / "work")
    leaked = {row["id"]: row for row in read_jsonl(tmp_path / "leaked.jsonl")}
    assert set(leaked) == {"verbatim", "near", "part", "whole"}
    assert leaked["verbatim"]["share"] == 1 and leaked["verbatim"]["jaccard"] == 1
    assert leaked["near"]["jaccard"] == pytest.approx(71 / 81, abs=0.02) and 0.5 < leaked["near"]["share"] < 1
    assert leaked["part"]["jaccard"] == 0 and 0 < leaked["part"]["share"] < 0.2
    assert leaked["whole"]["share"] == 1
    assert result["tasks"] == {
        "long": {"items": 5, "too_short": 0, "verbatim": 3, "near": 2},
        "small": {"items": 2, "too_short": 1, "verbatim": 1, "near": 1},
    }
    assert result["read"]["documents"] == 201 and result["read"]["files"] == 4
    assert [row["id"] for row in result["worst"]] == [row["id"] for row in leaked.values()]
    assert leaked["verbatim"]["training"]["document"] == "0.1" and result == json.loads(
        (tmp_path / "leaks.json").read_text()
    )
    shown = leaked["verbatim"]["training"]["text"].casefold().replace(",", "").removesuffix(" …")
    assert len(shown) > 150 and next(item["text"] for item in items if item["id"] == "verbatim").startswith(shown)


def test_the_same_for_any_number_of_workers(planted: tuple[list[dict[str, str]], list[Path]], tmp_path: Path) -> None:
    one, three = (leaks.report(*planted, tmp_path, tmp_path / str(workers), workers) for workers in (1, 3))
    assert one == three


def jaccard(one: str, other: str) -> float:
    first, second = (
        set(zip(*(words.split()[place:] for place in range(leaks.SHINGLE)), strict=False)) for words in (one, other)
    )
    return len(first & second) / len(first | second)


@given(st.integers(0, 1000), st.integers(0, 59))
def test_an_edited_item_is_near_exactly_if_its_jaccard_similarity_says_so(seed: int, place: int) -> None:
    rng = random.Random(seed)
    item = text(rng, 60)
    words = item.split()
    words[place] = "edited"
    changed = " ".join(words)
    before, found, after = leaks.Index([item]).search(
        [text(rng, 5), f"{text(rng, 100)} {changed} {text(rng, 100)}", ""]
    )
    assert not before and not after
    similarity = found[0].jaccard if found else 0.0
    if jaccard(item, changed) >= leaks.NEAR:
        assert similarity >= leaks.NEAR
    elif similarity:
        assert similarity == pytest.approx(jaccard(item, changed), abs=0.1)


@pytest.mark.parametrize(
    ("words", "count"), [("தமிழ் மொழி", 2), ("བོད་སྐད་ཡིག", 3), ("don't stop-it", 4), ("नमस्ते दुनिया", 2), ("", 0)]
)
def test_vowel_signs_do_not_cut_words(words: str, count: int) -> None:
    assert len(leaks.Words().of(words)) == count


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(1, 13))
def test_equal_words_have_equal_grams(words: list[int], count: int) -> None:
    hashes: Any = leaks.np.array(words, leaks.np.uint64)
    whole = leaks.grams(hashes, count)
    assert len(whole) == max(0, len(words) - count + 1)
    for place in range(len(whole)):
        assert whole[place] == leaks.grams(hashes[place : place + count], count)[0]
