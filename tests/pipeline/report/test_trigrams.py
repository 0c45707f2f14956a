"""Which language an answer is in."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import pytest

from pipeline.report import trigrams
from pipeline.report.trigrams import Errors, Profiles, learn, letters, passages

TAMIL_TEXT = (
    "நேற்று இரவு முழுவதும் மழை பெய்தது. காலையில் சாலைகள் எல்லாம் ஈரமாக இருந்தன. குழந்தைகள் பள்ளிக்குச் சென்றார்கள். "
    "அவர்கள் வழியில் ஒரு பெரிய மரத்தின் கீழ் நின்றார்கள். மழை மீண்டும் பெய்தது. ஆசிரியர் அவர்களுக்கு ஒரு கதை சொன்னார். "
)
ENGLISH_TEXT = (
    "The rain fell all through the night. In the morning the roads were wet. The children went to school and stood "
    "under a large tree on the way. Then the rain fell again. The teacher told them a story about the river. "
)
PROFILES = Profiles.of({"tam": TAMIL_TEXT, "en": ENGLISH_TEXT})


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("மழை பெய்தது", "tam"),
        ("the rain fell", "en"),
        ("THE RAIN FELL, 3 times!", "en"),
        ("བཀྲ་ཤིས་བདེ་ལེགས།", None),  # a third language
        ("xq zzk vvw qqj", None),  # no language
        ("123 456 !!", None),
        ("a", None),
        ("", None),
    ],
)
def test_an_answer_is_in_the_language_that_makes_it_more_likely(text: str, language: str | None) -> None:
    assert PROFILES.language_of(text) == language


def test_likelihoods_are_those_of_a_bare_loop() -> None:
    """Two languages of one script that share all trigrams but for their counts: smoothing and counts decide."""
    texts = {"a": "aba aba aba abc", "b": "abc abc abc aba"}
    profiles = Profiles.of(texts)
    text = letters("abc")
    seen = {trigram for each in texts.values() for trigram in trigrams.trigrams(letters(each))}

    def likelihood(language: str) -> float:
        own = trigrams.trigrams(letters(texts[language]))
        total = len(own) + len(seen) + 1
        return sum(log((own.count(text[i : i + 3]) + 1) / total) for i in range(len(text) - 2))

    assert likelihood("b") > likelihood("a")
    assert profiles.language_of("abc") == "b" and profiles.language_of("aba") == "a"


def test_marks_and_joined_forms_count_as_letters() -> None:
    assert letters("கோ, ‘வீடு’ 12!") == " கோ வீடு "
    assert letters("e\u0301te\u0301") == letters("été")


def test_no_language_is_known_better_for_having_more_text() -> None:
    counts = Profiles.of({"tam": TAMIL_TEXT, "en": ENGLISH_TEXT * 50}).counts
    assert abs(counts["tam"].total() - counts["en"].total()) <= 2


def test_passages_end_with_words_and_scripts_without_spaces_are_cut() -> None:
    words = "kalata " * 60
    assert {passage.strip()[-6:] for passage in passages([words])} == {"kalata"}
    assert {len(passage) for passage in passages(["བོད" * 100])} == {trigrams.PASSAGE}
    assert passages(["short"]) == []


def test_errors_are_measured_on_dev_text(tmp_path: Path) -> None:
    """Dev text whose second half is in the wrong file: half the passages of each language are misjudged."""
    folder = tmp_path / "text"
    folder.mkdir()
    for code, text, other in (("tam", TAMIL_TEXT, ENGLISH_TEXT), ("en", ENGLISH_TEXT, TAMIL_TEXT)):
        rows = [{"id": "1", "text": text * 4}, {"id": "2", "text": other * 4}]
        kept = {"train": [{"id": "0", "text": text}], "dev": rows}
        for split, of_split in kept.items():
            lines = "".join(json.dumps(row) + "\n" for row in of_split)
            (folder / f"{code}.{split}.jsonl").write_text(lines, encoding="utf-8")
    found = learn(tmp_path, "tam")
    own, foreign = (len(passages([text * 4])) for text in (TAMIL_TEXT, ENGLISH_TEXT))
    assert found.errors.missed == pytest.approx(foreign / (own + foreign))
    assert found.errors.false == pytest.approx(own / (own + foreign))
    assert found.errors.passages == 2 * (own + foreign)
    assert found.is_in_language("மழை பெய்தது") and not found.is_in_language("the rain")


def test_a_corpus_without_english_or_dev_text_has_no_such_errors(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    row = json.dumps({"id": "0", "text": TAMIL_TEXT}) + "\n"
    (tmp_path / "text" / "tam.train.jsonl").write_text(row, encoding="utf-8")
    assert learn(tmp_path, "tam").errors == Errors(None, None, 0)
