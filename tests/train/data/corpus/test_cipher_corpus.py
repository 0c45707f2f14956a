"""The corpus of the positive control: nobody reads in English what the cipher is made of."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.files import read_jsonl
from train.data.corpus import build, sources
from train.data.corpus.documents import is_withheld
from train.data.questions import QuestionSource, chapter_of
from train.settings import CipherSettings, CorpusOptions, CorpusSettings

SETTINGS = CipherSettings(
    source="cipher",
    language="cipher",
    dev=0.05,
    test=0.08,
    seed=0,
    replaced=0.6,
    cipher_seed=0,
    withheld_chapters=0.25,
    withheld_seed=0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cipher")
    build.build(SETTINGS, CorpusOptions(), out, out)
    return out


def documents(folder: Path, language: str, split: str) -> dict[str, str]:
    return {row["id"]: row["text"] for row in read_jsonl(folder / "text" / f"{language}.{split}.jsonl")}


def test_a_training_chapter_is_in_the_cipher_or_in_english_and_never_in_both(folder: Path) -> None:
    secret, english = (documents(folder, language, "train") for language in ("cipher", "en"))
    assert not set(secret) & set(english) and len(secret) + len(english) == 1023
    assert set(secret) == {name for name in {*secret, *english} if is_withheld(name, 0.25, 0)}
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    assert counts["settings"]["replaced"] == 0.6 and counts["languages"]["cipher"]["train"]["documents"] == len(secret)


def test_the_held_out_chapters_are_those_of_chichewa_and_their_text_is_enciphered_english(
    folder: Path, tmp_path: Path
) -> None:
    build.build(
        CorpusSettings(source="bible", language="nya", dev=0.05, test=0.08, seed=0), CorpusOptions(), tmp_path, tmp_path
    )
    words = sources.cipher_dictionary((text for _, text in sources.english_bible()), 0.6, 0)
    by_chapter: dict[str, list[str]] = {}
    for (book, number, _), text in sources.english_bible():
        by_chapter.setdefault(f"{book}.{number}", []).append(sources.encipher(text, words))
    for split in ("dev", "test"):
        secret = documents(folder, "cipher", split)
        assert set(secret) == set(documents(tmp_path, "nya", split)) == set(documents(folder, "en", split))
        same = [name for name, text in secret.items() if text == " ".join(by_chapter[name])]
        assert len(same) > 0.8 * len(secret)  # the others lost a verse that stands in training text


def test_questions_of_training_verses_stay_within_their_language(folder: Path) -> None:
    source = QuestionSource(folder, ("next", "genre", "about"), seed=0)
    for family in source.families:
        asked: dict[str, Any] = {
            language: {question.document for question in source.questions(family, language, "train", 300)}
            for language in ("cipher", "en")
        }
        assert asked["cipher"] and all(is_withheld(name, 0.25, 0) for name in asked["cipher"])
        assert asked["en"] and not any(is_withheld(name, 0.25, 0) for name in asked["en"])
    held_out = {chapter_of(verse) for verse in source.verses if verse["split"] == "test"}
    for language in ("cipher", "en"):
        questions = source.questions("about", language, "test", 100)
        assert len(questions) > 50 and {question.document for question in questions} <= held_out
        assert {question.choices for question in questions} == {questions[0].choices}


def test_most_of_the_text_is_new_and_some_is_not(folder: Path) -> None:
    english = {
        word for text in documents(folder, "en", "train").values() for word in sources.WORD.findall(text.lower())
    }
    secret = {
        word for text in documents(folder, "cipher", "train").values() for word in sources.WORD.findall(text.lower())
    }
    assert 0.25 < len(secret & english) / len(secret) < 0.4  # anchors; the other 40 % are rare and in one text only
