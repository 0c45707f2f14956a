import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from train.data.corpus import bible
from train.data.corpus import build as corpus
from train.data.corpus import text_files as files


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "source": "files",
        "language": "xx",
        "path": None,
        "english_path": None,
        "dev": 0.2,
        "test": 0.2,
        "seed": 0,
        **changes,
    }


def test_splits_have_about_their_shares_and_never_move() -> None:
    names = [str(i) for i in range(5000)]
    splits = [corpus.split_of(name, 0, 0.05, 0.1) for name in names]
    assert abs(splits.count("dev") / 5000 - 0.05) < 0.01
    assert abs(splits.count("test") / 5000 - 0.1) < 0.015
    assert splits[:100] == [corpus.split_of(name, 0, 0.05, 0.1) for name in names[:100]]
    assert splits != [corpus.split_of(name, 1, 0.05, 0.1) for name in names]


def test_a_held_out_passage_that_stands_in_training_text_is_dropped() -> None:
    items = [
        {"id": "a", "split": "train", "text": "The same, words."},
        {"id": "b", "split": "test", "text": "the same words"},
        {"id": "c", "split": "test", "text": "other words"},
    ]
    kept, dropped = corpus.drop_leaks(items)
    assert [item["id"] for item in kept] == ["a", "c"] and dropped == 1


def test_the_bible_is_split_by_chapter_and_aligned(tmp_path: Path) -> None:
    corpus.build(settings(source="bible", language="nya", dev=0.05, test=0.08), tmp_path, tmp_path)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["languages"]["nya"]["train"]["documents"] > 900
    chapters: dict[str, set[str]] = {}
    verses = corpus.read_jsonl(tmp_path / "verses.jsonl")
    for verse in verses:
        chapters.setdefault(verse["split"], set()).add(verse["id"].rpartition(".")[0])
    assert not chapters["train"] & chapters["test"] and not chapters["dev"] & chapters["test"]
    training = {corpus.normalised(verse["nya"]) for verse in verses if verse["split"] == "train"}
    assert not any(corpus.normalised(verse["nya"]) in training for verse in verses if verse["split"] != "train")
    for language in ("nya", "en"):  # the held-out chapters are held out of the English text too
        assert {row["id"] for row in corpus.read_jsonl(tmp_path / "text" / f"{language}.test.jsonl")} >= chapters[
            "test"
        ]
        assert (
            not {row["id"] for row in corpus.read_jsonl(tmp_path / "text" / f"{language}.train.jsonl")}
            & chapters["test"]
        )


def test_notes_and_glued_punctuation_are_mended() -> None:
    assert not any("{" in text for _, text in bible.english())
    assert not any(",a" in text for _, text in bible.chichewa())
    assert [bible.genre(book) for book in (1, 5, 6, 18, 23, 40, 45, 66)] == [
        "law",
        "law",
        "history",
        "poetry",
        "prophecy",
        "gospel",
        "letter",
        "letter",
    ]


@pytest.mark.parametrize("suffix", files.FORMATS)
def test_own_files_of_each_format(tmp_path: Path, suffix: str) -> None:
    texts = [f"document number {i} with some words" for i in range(50)]
    path = tmp_path / f"mine{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(texts))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        import pandas

        pandas.DataFrame({"text": texts}).to_parquet(path)
    assert list(files.documents(str(path), "corpus.path")) == texts


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"abc \xff\xfe", "not UTF-8"),
        ("a.csv", b"text", "not one of .txt"),
        ("a.jsonl", b"{oops", "line 1 is not JSON"),
        ("a.jsonl", b'{"content": "x"}', "lacks the text field 'text'"),
        ("a.parquet", b"oops", "not a Parquet file"),
        (None, b"", "no file matches"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str | None, content: bytes, says: str) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=says) as refusal:
        corpus.build(settings(path=str(tmp_path / (name or "missing.txt"))), tmp_path / "out", tmp_path)
    assert "corpus.path" in str(refusal.value) and "\n" not in str(refusal.value)
