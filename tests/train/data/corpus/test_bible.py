"""The two packages of text, as they are mended."""

from train.data.corpus import sources


def test_notes_and_glued_punctuation_are_mended() -> None:
    assert not any("{" in text or "&" in text for _, text in sources.english_bible())
    assert not any(",a" in text for _, text in sources.chichewa_bible())
    assert [sources.genre(book) for book in (1, 5, 6, 18, 23, 40, 45, 66)] == [
        "law",
        "law",
        "history",
        "poetry",
        "prophecy",
        "gospel",
        "letter",
        "letter",
    ]
