"""The corpus stage from the Bible and from a user's files."""

import json
import unicodedata
from pathlib import Path

import pytest

from common.errors import BadInput
from common.files import read_jsonl
from tests.toy_text import sentences
from train.data.corpus import build
from train.data.corpus.documents import normalised
from train.settings import CorpusOptions, CorpusSettings

SETTINGS = CorpusSettings(source="files", language="xx", dev=0.2, test=0.2, seed=0)


def test_a_held_out_passage_that_stands_in_training_text_is_dropped() -> None:
    items = [
        {"id": "a", "split": "train", "text": "The same, words."},
        {"id": "b", "split": "test", "text": "the same words"},
        {"id": "c", "split": "test", "text": "other words"},
    ]
    kept, dropped = build.drop_leaks(items)
    assert [item["id"] for item in kept] == ["a", "c"] and dropped == 1


def test_a_document_that_comes_again_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("\n\n".join([*sentences(0, 40), *sentences(0, 40)]), encoding="utf-8")
    build.build(SETTINGS, CorpusOptions(path=str(tmp_path / "own.txt")), tmp_path / "out", tmp_path)
    rows = [
        row for split in ("train", "dev", "test") for row in read_jsonl(tmp_path / "out/text" / f"xx.{split}.jsonl")
    ]
    assert sorted(row["text"] for row in rows) == sorted(set(sentences(0, 40)))


def test_a_decomposed_or_rewrapped_copy_is_taken_once(tmp_path: Path) -> None:
    texts = [text.replace("o", "\u1ecd\u0300") for text in sentences(0, 60)]
    copies = [unicodedata.normalize("NFD", text) for text in texts[:30]]
    wrapped = [text.replace(" ", "\n", 1) for text in texts[30:]]
    (tmp_path / "own.txt").write_text("\n\n".join([*texts, *copies, *wrapped]), encoding="utf-8")
    build.build(SETTINGS, CorpusOptions(path=str(tmp_path / "own.txt")), tmp_path / "out", tmp_path)
    splits = {name: read_jsonl(tmp_path / "out/text" / f"xx.{name}.jsonl") for name in ("train", "dev", "test")}
    assert sorted(row["text"] for rows in splits.values() for row in rows) == sorted(set(texts))


def test_text_stays_as_it_is_written(tmp_path: Path) -> None:
    texts = [unicodedata.normalize("NFD", text.replace("o", "\u1ecd\u0300")) for text in sentences(0, 60)]
    (tmp_path / "own.txt").write_text("\n\n".join(texts), encoding="utf-8")
    build.build(SETTINGS, CorpusOptions(path=str(tmp_path / "own.txt")), tmp_path / "out", tmp_path)
    rows = read_jsonl(tmp_path / "out/text/xx.train.jsonl")
    assert {row["text"] for row in rows} <= set(texts)


def test_the_bible_is_split_by_chapter_and_aligned(tmp_path: Path) -> None:
    settings = CorpusSettings(source="bible", language="nya", dev=0.05, test=0.08, seed=0)
    build.build(settings, CorpusOptions(), tmp_path, tmp_path)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["languages"]["nya"]["train"]["documents"] > 900
    chapters: dict[str, set[str]] = {}
    verses = read_jsonl(tmp_path / "verses.jsonl")
    for verse in verses:
        chapters.setdefault(verse["split"], set()).add(verse["id"].rpartition(".")[0])
    assert not chapters["train"] & chapters["test"] and not chapters["dev"] & chapters["test"]
    training = {normalised(verse["nya"]) for verse in verses if verse["split"] == "train"}
    assert not any(normalised(verse["nya"]) in training for verse in verses if verse["split"] != "train")
    for language in ("nya", "en"):  # the held-out chapters are held out of the English text too
        assert {row["id"] for row in read_jsonl(tmp_path / "text" / f"{language}.test.jsonl")} >= chapters["test"]
        assert not {row["id"] for row in read_jsonl(tmp_path / "text" / f"{language}.train.jsonl")} & chapters["test"]


def test_the_same_text_elsewhere_makes_the_same_files(tmp_path: Path) -> None:
    made = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for language in ("mine", "english"):
            (tmp_path / name / f"{language}.txt").write_text("\n\n".join(sentences(len(language), 60)))
        options = CorpusOptions(
            path=str(tmp_path / name / "mine.txt"), english_path=str(tmp_path / name / "english.txt")
        )
        out = tmp_path / name / "out"
        build.build(SETTINGS, options, out, tmp_path)
        made.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.json*")})
    assert made[0] == made[1] and len(made[0]) == 7


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"abc \xff\xfe", "not UTF-8"),
        ("a.csv", b"text", "expected a .txt or "),
        ("a.jsonl", b"{oops", "line 1: not JSON"),
        ("a.jsonl", b'{"content": "x"}', "has no field 'text'"),
        ("a.parquet", b"oops", "not a Parquet file"),
        (None, b"", "no file matches"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str | None, content: bytes, says: str) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=says) as refusal:
        build.build(SETTINGS, CorpusOptions(path=str(tmp_path / (name or "missing.txt"))), tmp_path / "out", tmp_path)
    assert "corpus.path" in str(refusal.value) and "\n" not in str(refusal.value)
