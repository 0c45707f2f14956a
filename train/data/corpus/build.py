"""The corpus stage: documents in the language and in English, split by document.

Held-out text that training text contains word for word is dropped, and everything is counted.

Writes `text/<language>.<split>.jsonl` (`{"id", "text"}`, one document per line), `verses.jsonl` if the two languages
are aligned verse by verse (`{"id", "split", "genre", "<language>", "en"}`, and `only`: the one language whose training
text has the verse, if not both have), and `counts.json`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import sha256, write_json, write_jsonl
from train.data.corpus import hub, sources
from train.data.corpus.documents import SPLITS, as_documents, is_withheld, normalised, split_of
from train.settings import CipherSettings, CorpusOptions, CorpusSettings, HubCorpusSettings

Row = dict[str, str]  # of passages: id, document, split, text
Passages = dict[str, list[Row]]  # by language


def build(settings: CorpusSettings, options: CorpusOptions, out: Path, work: Path) -> None:
    """Write the corpus to `out`; one from the Hub resumes in `work` if an earlier call was killed.

    What is written depends on `settings` and on the content of what `options` names, not on its location. Raises
    BadInput for a source, file or split that cannot work.
    """
    if isinstance(settings, HubCorpusSettings):
        hub.build_from_hub(settings, options, out, work)
        return
    verses: list[Row] = []
    if settings.source == "files":
        passages = _files(settings, options)
    elif settings.source == "bible":
        passages = _by_verse({settings.language: _chichewa(settings.language), "en": sources.english_bible()}, settings)
        verses = aligned(passages, settings.language)
    elif isinstance(settings, CipherSettings):
        passages, verses = cipher_passages(settings)
    else:
        raise BadInput(f"corpus.source={settings.source!r}: must be bible, cipher, files or hub.")
    counts: dict[str, Any] = {"languages": {}, "settings": settings.model_dump()}
    (out / "text").mkdir(parents=True)
    for language, rows in passages.items():
        counts["languages"][language] = _write_splits(language, rows, out / "text")
    if verses:
        write_jsonl(out / "verses.jsonl", verses)
        counts["aligned_verses"] = {split: sum(verse["split"] == split for verse in verses) for split in SPLITS}
    write_json(out / "counts.json", counts)


def _write_splits(language: str, passages: list[Row], folder: Path) -> dict[str, Any]:
    """Write a language's documents, one file per split, and return what is counted of them."""
    kept, dropped = drop_leaks(passages)
    counts: dict[str, Any] = {"leaked_passages_dropped": dropped}
    for split in SPLITS:
        documents = as_documents(passage for passage in kept if passage["split"] == split)
        if not documents:
            raise BadInput(f"corpus: {no_document(language, split)}")
        path = folder / f"{language}.{split}.jsonl"
        write_jsonl(path, documents)
        counts[split] = {
            "documents": len(documents),
            "words": sum(len(row["text"].split()) for row in documents),
            "bytes": sum(len(row["text"].encode()) for row in documents),
            "sha256": sha256(path),
        }
    return counts


def _chichewa(language: str) -> Iterator[tuple[sources.VerseId, str]]:
    if language != "nya":
        raise BadInput(
            f"language.code={language!r}: corpus=bible has Chichewa (nya) only."
            " Set corpus=files corpus.path=... for another language."
        )
    return sources.chichewa_bible()


def _by_verse(texts: Mapping[str, Iterable[tuple[sources.VerseId, str]]], settings: CorpusSettings) -> Passages:
    """Return verses as passages and chapters as documents; the split is by chapter, the same in every language."""
    passages: Passages = {}
    for language, verses in texts.items():
        passages[language] = []
        for (book, chapter, verse), text in sorted(dict(verses).items()):
            document = f"{book}.{chapter}"
            split = split_of(document, settings.seed, settings.dev, settings.test)
            row = {"id": f"{document}.{verse}", "document": document, "split": split, "text": text}
            passages[language].append(row)
    return passages


def cipher_passages(settings: CipherSettings) -> tuple[Passages, list[Row]]:
    """Return the Bible in English and in a cipher of English, and its aligned verses.

    Held-out chapters are in both. A training chapter is in one of them: withheld ones in the cipher, the rest in
    English, so that neither the base (which reads no English of withheld chapters) nor SFT or replay has met the text.
    """
    language = settings.language
    english = dict(sources.english_bible())
    words = sources.cipher_dictionary(english.values(), settings.replaced, settings.cipher_seed)
    ciphertext = {verse: sources.encipher(text, words) for verse, text in english.items()}
    passages = _by_verse({language: ciphertext.items(), "en": english.items()}, settings)
    verses = aligned(passages, language)
    only = {}
    for row in passages["en"]:
        if row["split"] == "train":
            withheld = is_withheld(row["document"], settings.withheld_chapters, settings.withheld_seed)
            only[row["id"]] = language if withheld else "en"
    kept = {name: [row for row in rows if only.get(row["id"], name) == name] for name, rows in passages.items()}
    return kept, [verse | ({"only": only[verse["id"]]} if verse["id"] in only else {}) for verse in verses]


def aligned(passages: Passages, language: str) -> list[Row]:
    """Return the verses that a language and English both have; held-out ones only where both drop nothing of them."""
    leaked = {passage["id"] for rows in passages.values() for passage in _leaks(rows)}
    english = {passage["id"]: passage["text"] for passage in passages["en"]}
    return [
        {
            "id": passage["id"],
            "split": passage["split"],
            "genre": sources.genre(int(passage["document"].partition(".")[0])),
            language: passage["text"],
            "en": english[passage["id"]],
        }
        for passage in passages[language]
        if passage["id"] in english and passage["id"] not in leaked
    ]


def _files(settings: CorpusSettings, options: CorpusOptions) -> Passages:
    """Return the passages of both languages, a document each."""
    if not options.path:
        raise BadInput("corpus.path: missing. Set a path or glob, such as corpus.path='data/*.txt'.")
    language = settings.language
    if language == "en":
        raise BadInput(
            "language.code=en: English is the replay language already. Give the code of the language to adapt to."
        )
    texts: dict[str, Iterable[str]] = {language: sources.read_documents(options.path, "corpus.path")}
    if options.english_path:
        texts["en"] = sources.read_documents(options.english_path, "corpus.english_path")
    else:
        chapters: dict[str, list[str]] = {}
        for (book, chapter, _), verse in sources.english_bible():
            chapters.setdefault(f"{book}.{chapter}", []).append(verse)
        texts["en"] = (" ".join(chapter) for chapter in chapters.values())
    passages: Passages = {}
    for name, documents in texts.items():
        passages[name] = []
        seen: set[str] = set()
        for text in documents:
            digest = document_name(text)
            if digest in seen:  # the same text again would be read twice within one document
                continue
            seen.add(digest)
            split = split_of(digest, settings.seed, settings.dev, settings.test)
            passages[name].append({"id": digest, "document": digest, "split": split, "text": text})
    return passages


def document_name(text: str) -> str:
    """Return a hash of a text. Copies may differ in line breaks and in the composition of letters (NFC, NFD)."""
    canonical = unicodedata.normalize("NFC", " ".join(text.split()))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def empty_splits(texts: Iterable[str], seed: int, dev: float, test: float) -> list[str]:
    """Return the splits that get none of these documents of a user's files."""
    found = {split_of(document_name(text), seed, dev, test) for text in texts}
    return [split for split in SPLITS if split not in found]


def no_document(language: str, split: str) -> str:
    """Describe a split that is empty, and what to do."""
    advice = "a smaller corpus.dev and corpus.test" if split == "train" else f"a larger corpus.{split}"
    return (
        f"no {language} document is in the {split} split. Give more documents (in .txt, a blank line ends one), or set"
        f" {advice}."
    )


def _leaks(passages: list[Row]) -> list[Row]:
    trained = {normalised(passage["text"]) for passage in passages if passage["split"] == "train"}
    return [passage for passage in passages if passage["split"] != "train" and normalised(passage["text"]) in trained]


def drop_leaks(passages: list[Row]) -> tuple[list[Row], int]:
    """Return the passages without held-out ones that training text contains word for word, and the number of those."""
    leaked = {passage["id"] for passage in _leaks(passages)}
    return [passage for passage in passages if passage["id"] not in leaked], len(leaked)
