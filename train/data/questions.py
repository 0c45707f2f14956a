"""Questions of every family from the text of a corpus: seeded, balanced choices of passages."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from common.files import read_jsonl
from train.data.corpus.documents import read_rows, training_files
from train.data.families import WORD_FAMILIES, Question, Vocabulary, about, genre, topic_of
from train.data.writing import Segmenter

T = TypeVar("T")
DocumentWords = tuple[str, list[str]]  # a document's id and its words
PASSAGE = 24  # words of a passage whose genre is asked for
LONGEST_VERSE = 32  # English words of a verse whose topic is asked for: short ones are quick to learn and to score


class QuestionSource:
    """The sources of questions: running text for the word families, aligned verses for genre and topic."""

    def __init__(self, corpus_dir: Path, families: Sequence[str], seed: int) -> None:
        self.seed = seed
        texts: dict[tuple[str, str], list[dict[str, Any]]] = {}  # by language and split
        for path in sorted((corpus_dir / "text").glob("*.jsonl")):
            language, split, _ = path.name.split(".")
            texts[language, split] = read_jsonl(path)
        if families:
            # of a corpus from the Hub, words and passages come from its first file: a sample that fits in memory
            for folder in sorted((corpus_dir / "text").glob("*.train")):
                first = training_files(corpus_dir, folder.stem)[0]
                texts[folder.stem, "train"] = read_rows(first)
        self.vocabulary = {
            language: Vocabulary(document["text"] for document in documents)
            for (language, split), documents in texts.items()
            if split == "train"
        }
        self.texts = {  # by language and split
            (language, split): split_texts(documents, self.vocabulary[language].writing)
            for (language, split), documents in texts.items()
        }
        verses = corpus_dir / "verses.jsonl"
        self.verses = read_jsonl(verses) if verses.exists() else []
        self._genres = {chapter_of(verse): str(verse["genre"]) for verse in self.verses}
        self.families = [name for name in families if name in WORD_FAMILIES or self.verses]

    def questions(self, family: str, language: str, split: str, count: int) -> list[Question]:
        """Return up to `count` questions, the same for the same seed; the labels of genre and topic are balanced."""
        rng = random.Random(f"{self.seed}:{family}:{language}:{split}")
        make = {"genre": self._genre, "about": self._about}.get(family)
        return list(make(language, split, count, rng) if make else self._words(family, language, split, count, rng))

    def _words(self, family: str, language: str, split: str, count: int, rng: random.Random) -> Iterator[Question]:
        documents, vocabulary = self.texts[language, split], self.vocabulary[language]
        weights = [len(words) for _, words in documents]
        seen: set[tuple[str, str]] = set()
        for document, words in rng.choices(documents, weights, k=20 * count):
            question = WORD_FAMILIES[family](words, vocabulary, rng)
            if question and (question.text, question.question) not in seen:
                seen.add((question.text, question.question))
                yield replace(question, document=document)
            if len(seen) == count:
                return

    def _genre(self, language: str, split: str, count: int, rng: random.Random) -> Iterator[Question]:
        by_label: dict[str, list[Question]] = {}
        for first, second in itertools.pairwise(self.verses):
            if is_in_split(first, language, split) and chapter_of(first) == chapter_of(second):
                words = f"{first[language]} {second[language]}".split()
                text, after = " ".join(words[:PASSAGE]), tuple(words[PASSAGE : PASSAGE + 2])
                asked = replace(genre(text, first["genre"]), document=chapter_of(first), after=after)
                by_label.setdefault(first["genre"], []).append(asked)
        yield from balanced(by_label, count, rng)

    def _about(self, language: str, split: str, count: int, rng: random.Random) -> Iterator[Question]:
        by_label: dict[str, list[Question]] = {}
        for verse, following in itertools.zip_longest(self.verses, self.verses[1:], fillvalue={"id": ""}):
            topic = topic_of(verse["en"])
            if is_in_split(verse, language, split) and topic and len(verse["en"].split()) <= LONGEST_VERSE:
                after = following[language].split()[:2] if chapter_of(following) == chapter_of(verse) else ()
                asked = replace(about(verse[language], topic), document=chapter_of(verse), after=tuple(after))
                by_label.setdefault(topic, []).append(asked)
        yield from balanced(by_label, count, rng)

    def genre_of(self, document: str) -> str | None:
        """Return the genre of a document, where its verses are aligned."""
        return self._genres.get(document)


def split_texts(rows: Iterable[Mapping[str, Any]], writing: Segmenter) -> list[DocumentWords]:
    """Return documents with their ids, in words."""
    return [(str(row["id"]), writing.split(row["text"])) for row in rows]


def is_in_split(verse: Mapping[str, Any], language: str, split: str) -> bool:
    """Return whether a verse stands in this split of this language's text."""
    return verse["split"] == split and verse.get("only", language) == language


def chapter_of(verse: Mapping[str, Any]) -> str:
    """Return the id of the document that a verse (`book.chapter.verse`) is from."""
    return str(verse["id"]).rpartition(".")[0]


def balanced(by_label: Mapping[str, Sequence[T]], count: int, rng: random.Random) -> list[T]:
    """Return as many questions of each label, up to `count` in all, in a random order."""
    if not by_label:
        return []
    each = min(count // len(by_label), *(len(questions) for questions in by_label.values()))
    chosen = [question for questions in by_label.values() for question in rng.sample(questions, each)]
    rng.shuffle(chosen)
    return chosen
