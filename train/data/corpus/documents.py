"""Documents of a corpus: their splits, equality of texts, and their files.

A corpus is a folder: `text/<language>.<split>.jsonl`, or for training text from the Hub
`text/<language>.train/*.parquet`; a row is `{"id", "text"}`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.files import read_jsonl
from train.data.segmentation import WORDS

SPLITS = ("train", "dev", "test")


def hash_fraction(name: str, seed: int | str) -> float:
    """Return a number in [0, 1) by a hash of a name, evenly spread over names."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) / 2**64


def split_of(name: str, seed: int, dev: float, test: float) -> str:
    """Return the split of a document, by a hash of its name: stable under additions to the corpus.

    `dev` and `test` are fractions of all documents.
    """
    fraction = hash_fraction(name, seed)
    return "test" if fraction < test else "dev" if fraction < test + dev else "train"


def is_withheld(document: str, share: float, seed: int) -> bool:
    """Return whether a training document is withheld: a base does not read its English, which is a cipher's text.

    share: fraction of documents. The hash of the name has another salt than the one that decides the split and whether
    a base has the document aligned.
    """
    return hash_fraction(f"withheld:{document}", seed) < share


def normalised(text: str) -> str:
    """Normalise a text for the comparison of held-out text with training text.

    Letters with their marks (such as vowel signs) and digits stay, case folded. A letter with its mark is the same as
    one character (NFC) and as two (NFD).
    """
    return " ".join(WORDS.findall(unicodedata.normalize("NFC", text))).casefold()


def as_documents(passages: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Join passages (`id`, `document`, `text`), in their order, into their documents."""
    documents: dict[str, list[str]] = {}
    for passage in passages:
        documents.setdefault(passage["document"], []).append(passage["text"])
    return [{"id": name, "text": " ".join(texts)} for name, texts in documents.items()]


def training_files(corpus_dir: Path, language: str) -> list[Path]:
    """Return the files of a language's training text.

    One JSONL, or the Parquet files of a corpus from the Hub, in their order.
    """
    single = corpus_dir / "text" / f"{language}.train.jsonl"
    return [single] if single.exists() else sorted((corpus_dir / "text" / f"{language}.train").glob("*.parquet"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of one file of training text or instructions.

    Those of a Parquet file fit in memory: train.data.corpus.hub writes small files.
    """
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()
