"""Leaks planted in a corpus are found, and nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from common.files import read_jsonl, write_jsonl
from tests.toy_text import random_words
from train.data import contamination


@pytest.fixture
def planted(tmp_path: Path) -> tuple[list[dict[str, str]], list[Path]]:
    """Items, and a corpus in which some of them stand."""
    rng = random.Random(0)
    passages = {name: random_words(rng, 80).split() for name in ("clean", "verbatim", "near", "part", "far")} | {
        "whole": random_words(rng, 9).split(),
        "short": random_words(rng, 7).split(),
    }
    changed = list(passages["near"])
    changed[20] = "changed"
    # every sixth word is another: no 13 in a row, and few shingles
    far = [word if number % 6 else "other" for number, word in enumerate(passages["far"])]
    documents = [random_words(rng, 300) for _ in range(200)]
    inside = {
        3: " ".join(passages["verbatim"]).upper().replace(" ", ", "),
        50: " ".join(changed),
        90: " ".join(passages["part"][5:25]),
        120: " ".join(far),
    }
    inside |= {150: " ".join(passages["whole"]), 170: " ".join(passages["short"])}
    for number, passage in inside.items():
        documents[number] = f"{documents[number][:500]} {passage}. {documents[number][500:]}"
    files = [tmp_path / f"{number:05d}.parquet" for number in range(3)]
    for number, file in enumerate(files):
        rows = documents[number::3]
        parquet.write_table(pyarrow.table({"id": [f"{number}.{i}" for i in range(len(rows))], "text": rows}), file)
    write_jsonl(tmp_path / "sft.jsonl", [{"prompt": "A clean one", "output": "is here"}])
    items = [
        {"task": "long" if len(words) > 9 else "small", "id": name, "text": " ".join(words)}
        for name, words in passages.items()
    ]
    return items, [*files, tmp_path / "sft.jsonl"]


def test_what_was_planted_is_found_and_nothing_else(
    planted: tuple[list[dict[str, str]], list[Path]], tmp_path: Path
) -> None:
    items, files = planted
    result = contamination.find_contamination(items, files, tmp_path, tmp_path / "work")
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
    first, *others = (
        contamination.find_contamination(*planted, tmp_path, tmp_path / str(workers), workers) for workers in (1, 3)
    )
    assert others == [first]


def test_items_are_found_in_conversations(tmp_path: Path) -> None:
    said = random_words(random.Random(1), 40)
    talk = [{"role": "user", "content": "which words"}, {"role": "assistant", "content": said}]
    talk += [{"role": "user", "content": "and then"}, {"role": "assistant", "content": "no more"}]
    write_jsonl(tmp_path / "sft.jsonl", [{"messages": talk, "family": "own"}])
    items = [{"task": "t", "id": "said", "text": said}]
    contamination.find_contamination(items, [tmp_path / "sft.jsonl"], tmp_path, tmp_path / "work")
    [leaked] = read_jsonl(tmp_path / "leaked.jsonl")
    assert leaked["share"] == 1 and leaked["jaccard"] == 1  # the words of a turn are not joined to those of the next
