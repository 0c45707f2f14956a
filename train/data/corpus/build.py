"""The corpus stage: documents in the language and in English, split by document, with verbatim leaks dropped and everything counted.

Leaves `text/<language>.<split>.jsonl` (`{"id", "text"}`, a document a line), `verses.jsonl` where the two languages are aligned verse by verse
(`{"id", "split", "genre", "<language>", "en"}`), and `counts.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import BadInput
from train.data.corpus import bible
from train.data.corpus import text_files as files

SPLITS = ("train", "dev", "test")


def place_of(name: str, seed: int) -> float:
    """A document's place in [0, 1), by a hash of its name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) / 2**64


def split_of(name: str, seed: int, dev: float, test: float) -> str:
    """The split of a document, by its place: stable under additions to the corpus."""
    place = place_of(name, seed)
    return "test" if place < test else "dev" if place < test + dev else "train"


def normalised(text: str) -> str:
    """What counts as the same text when leaks are looked for: letters and digits, case folded."""
    return re.sub(r"[\W_]+", " ", text).casefold().strip()


def build(settings: dict[str, Any], out: Path, work: Path) -> None:
    """Writes the corpus to `out`. Settings: source, language, path, english_path, dev, test, seed; for source `hub`, see train.data.corpus.hub_corpus.

    Raises BadInput for a source, file or split that cannot work.
    """
    if settings["source"] == "hub":
        from train.data.corpus import hub_corpus

        hub_corpus.build(settings, out, work)
        return
    if settings["source"] == "bible":
        passages, verses = _bible(settings)
    elif settings["source"] == "files":
        passages, verses = _files(settings), []
    else:
        raise BadInput(f"corpus.source={settings['source']!r}: choose bible, files or hub")
    counts: dict[str, Any] = {"languages": {}, "settings": settings}
    (out / "text").mkdir(parents=True)
    for language, items in passages.items():
        kept, dropped = drop_leaks(items)
        counts["languages"][language] = {"leaked_passages_dropped": dropped}
        for split in SPLITS:
            rows = as_documents(item for item in kept if item["split"] == split)
            if not rows:
                raise BadInput(
                    f"corpus: no {language} document fell into the {split} split; give more documents or a larger corpus.{split}"
                )
            path = out / "text" / f"{language}.{split}.jsonl"
            write_jsonl(path, rows)
            counts["languages"][language][split] = {
                "documents": len(rows),
                "words": sum(len(row["text"].split()) for row in rows),
                "bytes": sum(len(row["text"].encode()) for row in rows),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
    if verses:
        write_jsonl(out / "verses.jsonl", verses)
        counts["aligned_verses"] = {split: sum(verse["split"] == split for verse in verses) for split in SPLITS}
    (out / "counts.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n")


def _bible(settings: dict[str, Any]) -> tuple[dict[str, list[dict[str, str]]], list[dict[str, str]]]:
    language = settings["language"]
    if language != "nya":
        raise BadInput(
            f"language.code={language!r}: corpus=bible holds Chichewa (nya); for another language use corpus=files corpus.path=..."
        )
    texts = {language: dict(bible.chichewa()), "en": dict(bible.english())}
    passages: dict[str, list[dict[str, str]]] = {}
    for name, by_verse in texts.items():
        passages[name] = []
        for (book, chapter, verse), text in sorted(by_verse.items()):
            document = f"{book}.{chapter}"
            split = split_of(document, settings["seed"], settings["dev"], settings["test"])
            passages[name].append({"id": f"{document}.{verse}", "document": document, "split": split, "text": text})
    leaked = {item["id"] for items in passages.values() for item in _leaks(items)}
    verses = [
        {
            "id": item["id"],
            "split": item["split"],
            "genre": bible.genre(book),
            language: item["text"],
            "en": texts["en"][book, chapter, verse],
        }
        for item in passages[language]
        for book, chapter, verse in [tuple(int(part) for part in item["id"].split("."))]
        if (book, chapter, verse) in texts["en"] and item["id"] not in leaked
    ]
    return passages, verses


def _files(settings: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    if not settings.get("path"):
        raise BadInput("corpus.path is empty: give a path or glob, for example corpus.path='data/*.txt'")
    language = settings["language"]
    if language == "en":
        raise BadInput(
            "language.code=en: English is the replay language already; give the code of the language to adapt to"
        )
    texts: dict[str, Iterable[str]] = {language: files.documents(settings["path"], "corpus.path")}
    if settings.get("english_path"):
        texts["en"] = files.documents(settings["english_path"], "corpus.english_path")
    else:
        chapters: dict[str, list[str]] = {}
        for (book, chapter, _), verse in bible.english():
            chapters.setdefault(f"{book}.{chapter}", []).append(verse)
        texts["en"] = (" ".join(chapter) for chapter in chapters.values())
    passages: dict[str, list[dict[str, str]]] = {}
    for name, documents in texts.items():
        passages[name] = []
        for text in documents:
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            split = split_of(digest, settings["seed"], settings["dev"], settings["test"])
            passages[name].append({"id": digest, "document": digest, "split": split, "text": text})
    return passages


def _leaks(items: list[dict[str, str]]) -> list[dict[str, str]]:
    seen = {normalised(item["text"]) for item in items if item["split"] == "train"}
    return [item for item in items if item["split"] != "train" and normalised(item["text"]) in seen]


def drop_leaks(items: list[dict[str, str]]) -> tuple[list[dict[str, str]], int]:
    """The passages without the held-out ones that stand word for word in training text too, and how many those were."""
    leaked = {item["id"] for item in _leaks(items)}
    return [item for item in items if item["id"] not in leaked], len(leaked)


def as_documents(passages: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Passages joined, in their order, into the documents that they belong to."""
    documents: dict[str, list[str]] = {}
    for passage in passages:
        documents.setdefault(passage["document"], []).append(passage["text"])
    return [{"id": name, "text": " ".join(texts)} for name, texts in documents.items()]


def files_of(corpus_dir: Path, language: str) -> list[Path]:
    """The files of a language's training text: one JSONL, or the Parquet files of a corpus from the hub."""
    single = corpus_dir / "text" / f"{language}.train.jsonl"
    return [single] if single.exists() else sorted((corpus_dir / "text" / f"{language}.train").glob("*.parquet"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one file of training text or instructions; those of a Parquet file fit in memory, as train.data.corpus.shards makes them."""
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, in UTF-8, keys in the order given."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_jsonl` wrote."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
