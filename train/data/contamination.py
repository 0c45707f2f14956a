"""Evaluation items that stand in training text, word for word or nearly: found and reported, for any corpus and any set of tasks.

verbatim   13 words in a row that an item and the training text share, letters and digits only, case folded: the n-grams of GPT-3's contamination study
           (Brown et al. 2020, appendix C) and of lm-eval's decontamination. An item of 8 to 12 words is looked for as a whole; a shorter one cannot be judged.
near       a passage whose set of 5-word shingles has a Jaccard similarity of 0.8 or more with the item's: the near-duplicates of Lee et al. 2022
           (arXiv 2107.06499). They estimate it by MinHash, since they compare every document with every other. The items here are few enough to be
           indexed whole, so that it is computed and not estimated, and none is missed.

The training text is read once, file by file, by several processes; memory holds the items and one file a process.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.corpus.build import files_of, read_jsonl, read_rows, write_jsonl
from train.data.instructions import instruction_files
from train.data.processes import Workers
from train.data.tokenization import batched

GRAM = 13  # words of a verbatim match
SHORTEST = 8  # words of the shortest item that can be judged
SHINGLE = 5  # words of a shingle
NEAR = 0.8  # Jaccard similarity of a near-duplicate
WORST = 20  # examples in the report
EXCERPT = 240  # characters of an example
TOGETHER = 256  # documents searched at a time

Hashes = NDArray[np.uint64]
GAP = np.array([0x5EED0FA6A9B1C3D7], np.uint64)  # between two documents: the hash of no word
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: a polynomial in it modulo 2^64 keeps every word's hash


class Words:
    """Texts as hashes of their words. Letters, marks and digits make words, so that vowel signs do not cut them; case is folded."""

    MOST = 2_000_000  # words remembered

    def __init__(self) -> None:
        import regex

        self.find = regex.compile(r"[\p{L}\p{M}\p{N}]+").finditer
        self.known: dict[str, int] = {}

    def of(self, text: str) -> Hashes:
        if len(self.known) > self.MOST:
            self.known.clear()
        return np.fromiter((self.hash(match[0]) for match in self.find(text.casefold())), np.uint64)

    def hash(self, word: str) -> int:
        if word not in self.known:
            self.known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        return self.known[word]

    def excerpt(self, text: str, start: int, count: int) -> str:
        """The words from `start` on as they stand in the text."""
        spans = [match.span() for match in self.find(text)]
        found = text[spans[min(start, len(spans) - 1)][0] : spans[min(start + count, len(spans)) - 1][1]]
        return found if len(found) <= EXCERPT else found[:EXCERPT] + " …"


def grams(words: Hashes, count: int) -> Hashes:
    """A hash of each `count` words in a row: (words − count + 1,)."""
    if len(words) < count:
        return np.empty(0, np.uint64)
    total = np.zeros(len(words) - count + 1, np.uint64)
    for place in range(count):
        total = total * FACTOR + words[place : len(words) - count + 1 + place]
    return total


@dataclass
class Found:
    """What the training text has of one item: its n-grams, and where the first and the nearest passage stand."""

    grams: set[int] = field(default_factory=set)
    jaccard: float = 0.0
    passage: dict[str, Any] = field(default_factory=dict)  # file, document, text
    near: dict[str, Any] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """Takes in what a later file has."""
        self.grams |= other.grams
        self.passage = self.passage or other.passage
        if other.jaccard > self.jaccard:
            self.jaccard, self.near = other.jaccard, other.near


@dataclass
class Match:
    """What one document has of one item: its n-grams, the place of the first, the highest Jaccard similarity and its place; places are in words."""

    first: int
    grams: set[int] = field(default_factory=set)
    jaccard: float = 0.0
    near: int = 0


class Index:
    """The n-grams and shingles of all items, and which items have each."""

    BITS = np.uint64(24)  # a first sieve of 16 MB, which most n-grams of the training text do not pass

    def __init__(self, texts: Iterable[str]) -> None:
        self.words = Words()
        self.sizes: list[int] = []  # words of an item's n-grams; 0: too short
        self.grams: list[set[int]] = []
        self.shingles: list[set[int]] = []
        self.with_gram: dict[int, dict[int, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )  # size -> n-gram -> items
        self.with_shingle: dict[int, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            words = self.words.of(text)
            size = min(GRAM, len(words)) if len(words) >= SHORTEST else 0
            self.sizes.append(size)
            self.grams.append(set(grams(words, size).tolist()) if size else set())
            self.shingles.append(set(grams(words, SHINGLE).tolist()) if size else set())
            for gram in self.grams[-1]:
                self.with_gram[size][gram].append(number)
            for shingle in self.shingles[-1]:
                self.with_shingle[shingle].append(number)
        self.sieves = {size: self.sieve(held) for size, held in self.with_gram.items()}
        self.shingle_sieve = self.sieve(self.with_shingle)

    def sieve(self, hashes: Iterable[int]) -> NDArray[np.bool_]:
        table = np.zeros(1 << int(self.BITS), bool)
        table[np.fromiter(hashes, np.uint64) >> (np.uint64(64) - self.BITS)] = True
        return table

    def through(self, sieve: NDArray[np.bool_], hashes: Hashes) -> Iterator[tuple[int, int]]:
        """Places and hashes that may be an item's."""
        places = np.flatnonzero(sieve[hashes >> (np.uint64(64) - self.BITS)])
        return zip(places.tolist(), hashes[places].tolist(), strict=True)

    def search(self, documents: Sequence[str]) -> list[dict[int, Match]]:
        """What each document has of each item. Documents are searched together, with a gap between them that no item has: many are short."""
        words = [part for document in documents for part in (self.words.of(document), GAP)]
        starts = np.cumsum([0, *map(len, words)])[::2].tolist()
        joined = np.concatenate(words)
        found: list[dict[int, Match]] = [{} for _ in documents]
        for size, held in self.with_gram.items():
            for place, gram in self.through(self.sieves[size], grams(joined, size)):
                for item in held.get(gram, ()):
                    document = bisect.bisect_right(starts, place) - 1
                    found[document].setdefault(item, Match(place - starts[document])).grams.add(gram)
        shingles = grams(joined, SHINGLE)
        shared: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, shingle in self.through(self.shingle_sieve, shingles):
            for item in self.with_shingle.get(shingle, ()):
                document = bisect.bisect_right(starts, place) - 1
                shared[document, item].append(place - starts[document])
        for (document, item), places in shared.items():
            if len(places) >= NEAR * len(self.shingles[item]):
                similarity, place = self.nearest(
                    item, places, shingles[starts[document] : starts[document + 1] - SHINGLE]
                )
                if similarity >= NEAR:
                    match = found[document].setdefault(item, Match(place))
                    match.jaccard, match.near = similarity, place
        return found

    def nearest(self, item: int, places: Sequence[int], shingles: Hashes) -> tuple[float, int]:
        """The highest Jaccard similarity of an item with a passage of its length that begins or ends with one of its shingles, and the place."""
        own = self.shingles[item]
        best = (0.0, 0)
        for start in sorted({start for place in places for start in (place, max(0, place + 1 - len(own)))}):
            passage = set(shingles[start : start + len(own)].tolist())
            best = max(best, (len(own & passage) / len(own | passage), start))
        return best


_index: Index | None = None  # of this process


def begin(items: Path) -> None:
    """Readies a process to search for items, rows with a `text`."""
    global _index
    _index = Index(row["text"] for row in read_jsonl(items))


def scan(file: Path) -> tuple[dict[int, Found], Counter[str]]:
    """What a file of training text or instructions has of each item, and how much was read."""
    index, found, read = _index, defaultdict[int, Found](Found), Counter[str]()
    assert index is not None
    for rows in batched(enumerate(read_rows(file)), TOGETHER):
        texts = [row["text"] if "text" in row else f"{row['prompt']} {row['output']}" for _, row in rows]
        read.update(documents=len(texts), bytes=sum(len(text.encode()) for text in texts))
        for (number, row), text, matches in zip(rows, texts, index.search(texts), strict=True):
            about = {"file": f"{file.parent.name}/{file.name}", "document": row.get("id", str(number))}
            for item, match in matches.items():
                one = Found(match.grams, match.jaccard)
                if match.grams:
                    one.passage = {**about, "text": index.words.excerpt(text, match.first, index.sizes[item] * 2)}
                if match.jaccard:
                    one.near = {
                        **about,
                        "text": index.words.excerpt(text, match.near, len(index.shingles[item]) + SHINGLE - 1),
                    }
                found[item].add(one)
    return dict(found), read


def report(
    items: Sequence[dict[str, str]], files: Sequence[Path], out: Path, work: Path, workers: int = 1
) -> dict[str, Any]:
    """Looks for items (`{"task", "id", "text"}`) in files of training text; leaves `leaks.json` and `leaked.jsonl` (an item a line, worst first).

    Returns what `leaks.json` holds: how much was read, the counts of each task, and the worst examples.
    """
    work.mkdir(parents=True, exist_ok=True)
    write_jsonl(work / "items.jsonl", items)
    index = Index(item["text"] for item in items)
    found: dict[int, Found] = defaultdict(Found)
    read: Counter[str] = Counter()
    with Workers(workers, begin, (work / "items.jsonl",)) as pool:
        for there, counted in pool.map(scan, files):
            read.update(counted)
            for number, one in there.items():
                found[number].add(one)
    leaked = sorted(
        (entry(items[number], one, len(index.grams[number])) for number, one in found.items()), key=severity
    )
    tasks: dict[str, dict[str, Any]] = {}
    for item, size in zip(items, index.sizes, strict=True):
        counts = tasks.setdefault(item["task"], {"items": 0, "too_short": 0, "verbatim": 0, "near": 0})
        counts["items"] += 1
        counts["too_short"] += not size
    for row in leaked:
        tasks[row["task"]]["verbatim"] += row["share"] > 0
        tasks[row["task"]]["near"] += row["jaccard"] >= NEAR
    result = {
        "gram_words": GRAM,
        "shingle_words": SHINGLE,
        "shortest_words": SHORTEST,
        "near_jaccard": NEAR,
        "read": {"files": len(files), **read},
        "tasks": tasks,
        "worst": leaked[:WORST],
    }
    write_jsonl(out / "leaked.jsonl", leaked)
    (out / "leaks.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def training_files(corpus_dir: Path, instructions_dir: Path) -> list[Path]:
    """All that is trained on: the text of both languages, and the instructions."""
    folders = (corpus_dir / "text").glob("*.train*")
    languages = sorted({folder.name.split(".")[0] for folder in folders})
    text = [file for language in languages for file in files_of(corpus_dir, language)]
    return [*text, *instruction_files(instructions_dir)]


def entry(item: dict[str, str], found: Found, count: int) -> dict[str, Any]:
    """The record of a leaked item. share: of its n-grams that stand in training text; jaccard: of the nearest passage, 0 below the bound."""
    text = item["text"] if len(item["text"]) <= EXCERPT else item["text"][:EXCERPT] + " …"
    return {
        "task": item["task"],
        "id": item["id"],
        "share": round(len(found.grams) / count, 4),
        "jaccard": round(found.jaccard, 4),
        "text": text,
        "training": found.near or found.passage,
    }


def severity(row: dict[str, Any]) -> tuple[float, float, str, str]:
    """Sorts the worst first: near-duplicates by similarity, then by the share of n-grams."""
    return -row["jaccard"], -row["share"], row["task"], row["id"]
