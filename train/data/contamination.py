"""Evaluation items that training text contains, word for word or nearly: found and reported, for any corpus and tasks.

verbatim   13 words in a row that an item and the training text share, letters and digits only, case folded: the n-grams
           of GPT-3's contamination study (Brown et al. 2020, appendix C) and of lm-eval's decontamination. An item of
           8 to 12 words is searched as a whole; a shorter one cannot be judged.
near       a passage whose set of 5-word shingles has a Jaccard similarity of 0.8 or more with the item's: the
           near-duplicates of Lee et al. 2022 (arXiv 2107.06499). They estimate it by MinHash, since they compare every
           document with every other. The items here are few enough for a complete index, so that the similarity is
           exact and none is missed.

Several processes read the training text once, file by file; memory holds the items and one file per process. A hash is
64 bits. An n-gram is n words in a row; the shingles of a text are its set of n-grams of SHINGLE words.
docs/reference/data.md explains these sizes.
"""

from __future__ import annotations

import bisect
import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import read_jsonl, write_json, write_jsonl
from common.processes import Workers
from train.data.corpus.documents import read_rows, training_files
from train.data.instructions import instruction_files
from train.data.segmentation import WORDS
from train.data.tokenization import batched, texts_of

GRAM = 13  # words of a verbatim match
SHORTEST = 8  # words of the shortest item that can be judged
SHINGLE = 5  # words of a shingle
NEAR = 0.8  # Jaccard similarity of a near-duplicate
EXCERPT = 240  # characters of an excerpt
WORST = 20  # items in the report
DOCUMENTS_AT_ONCE = 256  # searched together

Hashes = NDArray[np.uint64]
GAP = np.array([0x5EED0FA6A9B1C3D7], np.uint64)  # between two documents: the hash of no word
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: a polynomial in it modulo 2^64 keeps every word's hash


class WordHasher:
    """Texts as hashes of their words.

    Words are letters, marks and digits, so that vowel signs do not split them. Case is folded, and a letter with its
    mark is the same as one character (NFC) and as two (NFD).
    """

    MAX_CACHED = 2_000_000  # words

    def __init__(self) -> None:
        self.find = WORDS.finditer
        self.known: dict[str, int] = {}

    def hashes(self, text: str) -> Hashes:
        """Return the hash of each word: (words,)."""
        if len(self.known) > self.MAX_CACHED:
            self.known.clear()
        folded = unicodedata.normalize("NFC", text).casefold()
        return np.fromiter((self.hash(match[0]) for match in self.find(folded)), np.uint64)

    def hash(self, word: str) -> int:
        """Return the hash of a word, the same in every process."""
        if word not in self.known:
            self.known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        return self.known[word]

    def excerpt(self, text: str, start: int, count: int) -> str:
        """Return `count` words of the text from word `start`, cut after EXCERPT characters."""
        spans = [match.span() for match in self.find(text)]
        return shorten(text[spans[min(start, len(spans) - 1)][0] : spans[min(start + count, len(spans)) - 1][1]])


def shorten(text: str) -> str:
    """Return the first EXCERPT characters of a text."""
    return text if len(text) <= EXCERPT else text[:EXCERPT] + " …"


def gram_hashes(words: Hashes, count: int) -> Hashes:
    """Return the hash of each `count` words in a row: (words − count + 1,)."""
    if len(words) < count:
        return np.empty(0, np.uint64)
    total = np.zeros(len(words) - count + 1, np.uint64)
    for offset in range(count):
        total = total * FACTOR + words[offset : len(words) - count + 1 + offset]
    return total


@dataclass
class Match:
    """Findings about one item in one document; positions are in words of the document."""

    first: int  # position of the first n-gram
    grams: set[int] = field(default_factory=set)
    jaccard: float = 0.0  # the highest similarity of a passage, 0 below NEAR
    near: int = 0  # position of that passage


class ItemIndex:
    """The n-grams and shingles of all items, and which items have each."""

    SIEVE_BITS = np.uint64(24)  # of a first filter of 16 MB, which most n-grams of the training text do not pass

    def __init__(self, texts: Iterable[str]) -> None:
        self.words = WordHasher()
        self.sizes: list[int] = []  # words of an item's n-grams; 0: too short
        self.grams: list[set[int]] = []
        self.shingles: list[set[int]] = []
        self.with_gram: dict[int, dict[int, list[int]]] = {}  # size -> n-gram -> items
        self.with_shingle: dict[int, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            words = self.words.hashes(text)
            size = min(GRAM, len(words)) if len(words) >= SHORTEST else 0
            self.sizes.append(size)
            self.grams.append(set(gram_hashes(words, size).tolist()) if size else set())
            self.shingles.append(set(gram_hashes(words, SHINGLE).tolist()) if size else set())
            for gram in self.grams[-1]:
                self.with_gram.setdefault(size, defaultdict(list))[gram].append(number)
            for shingle in self.shingles[-1]:
                self.with_shingle[shingle].append(number)
        self.sieves = {size: self.sieve(items) for size, items in self.with_gram.items()}
        self.shingle_sieve = self.sieve(self.with_shingle)

    def sieve(self, hashes: Iterable[int]) -> NDArray[np.bool_]:
        """Mark the first bits that some hash has: (2^SIEVE_BITS,)."""
        table = np.zeros(1 << int(self.SIEVE_BITS), bool)
        table[np.fromiter(hashes, np.uint64) >> (np.uint64(64) - self.SIEVE_BITS)] = True
        return table

    def candidates(self, sieve: NDArray[np.bool_], hashes: Hashes) -> Iterator[tuple[int, int]]:
        """Return the positions and hashes that may be an item's."""
        positions = np.flatnonzero(sieve[hashes >> (np.uint64(64) - self.SIEVE_BITS)])
        return zip(positions.tolist(), hashes[positions].tolist(), strict=True)

    def search(self, documents: Sequence[str]) -> list[dict[int, Match]]:
        """Return what each document contains of each item, by the item's number.

        Many documents are short, so they are searched together, with a gap between them that no item contains.
        """
        words = [part for document in documents for part in (self.words.hashes(document), GAP)]
        starts = np.cumsum([0, *map(len, words)])[::2].tolist()
        joined = np.concatenate(words)
        matches: list[dict[int, Match]] = [{} for _ in documents]
        for size, items_with in self.with_gram.items():
            for position, gram in self.candidates(self.sieves[size], gram_hashes(joined, size)):
                for item in items_with.get(gram, ()):
                    document = bisect.bisect_right(starts, position) - 1
                    matches[document].setdefault(item, Match(position - starts[document])).grams.add(gram)
        shingles = gram_hashes(joined, SHINGLE)
        shared: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, shingle in self.candidates(self.shingle_sieve, shingles):
            for item in self.with_shingle.get(shingle, ()):
                document = bisect.bisect_right(starts, position) - 1
                shared[document, item].append(position - starts[document])
        for (document, item), positions in shared.items():
            if len(positions) >= NEAR * len(self.shingles[item]):
                of_document = shingles[starts[document] : starts[document + 1] - SHINGLE]
                similarity, position = self.nearest(item, positions, of_document)
                if similarity >= NEAR:
                    match = matches[document].setdefault(item, Match(position))
                    match.jaccard, match.near = similarity, position
        return matches

    def nearest(self, item: int, positions: Sequence[int], shingles: Hashes) -> tuple[float, int]:
        """Return the highest Jaccard similarity of an item with a passage of the document, and the passage's position.

        A passage has the item's length and begins or ends with one of its shingles.
        """
        wanted = self.shingles[item]
        best = (0.0, 0)
        begins_with = set(positions)
        ends_with = {max(0, position + 1 - len(wanted)) for position in positions}
        for start in sorted(begins_with | ends_with):
            passage = set(shingles[start : start + len(wanted)].tolist())
            best = max(best, (len(wanted & passage) / len(wanted | passage), start))
        return best


# --- The search ---


@dataclass
class Evidence:
    """Findings about one item in the training text: its n-grams, and the first and the nearest passage."""

    grams: set[int] = field(default_factory=set)
    jaccard: float = 0.0
    passage: dict[str, Any] = field(default_factory=dict)  # file, document, text
    near: dict[str, Any] = field(default_factory=dict)

    def add(self, other: Evidence) -> None:
        """Add the findings of a later file."""
        self.grams |= other.grams
        self.passage = self.passage or other.passage
        if other.jaccard > self.jaccard:
            self.jaccard, self.near = other.jaccard, other.near


_index: ItemIndex | None = None  # of this process


def init_worker(items: Path) -> None:
    """Prepare a process to search for items, rows with a `text`."""
    global _index
    _index = ItemIndex(row["text"] for row in read_jsonl(items))


def scan(file: Path) -> tuple[dict[int, Evidence], Counter[str]]:
    """Return what a file of training text or instructions contains of each item, by number, and how much was read."""
    index = _index
    assert index is not None
    items, read = defaultdict[int, Evidence](Evidence), Counter[str]()
    for rows in batched(enumerate(read_rows(file)), DOCUMENTS_AT_ONCE):
        texts = ["".join(text for text, _ in texts_of(row)) for _, row in rows]
        read.update(documents=len(texts), bytes=sum(len(text.encode()) for text in texts))
        for (number, row), text, matches in zip(rows, texts, index.search(texts), strict=True):
            origin = {"file": f"{file.parent.name}/{file.name}", "document": row.get("id", str(number))}
            for item, match in matches.items():
                evidence = Evidence(match.grams, match.jaccard)
                if match.grams:
                    excerpt = index.words.excerpt(text, match.first, index.sizes[item] * 2)
                    evidence.passage = {**origin, "text": excerpt}
                if match.jaccard:
                    excerpt = index.words.excerpt(text, match.near, len(index.shingles[item]) + SHINGLE - 1)
                    evidence.near = {**origin, "text": excerpt}
                items[item].add(evidence)
    return dict(items), read


def find_contamination(
    items: Sequence[dict[str, str]], files: Sequence[Path], out: Path, work: Path, workers: int = 1
) -> dict[str, Any]:
    """Search files of training text for items (`{"task", "id", "text"}`).

    Writes `leaks.json` and `leaked.jsonl` (one item per line, worst first). Returns the content of `leaks.json`: how
    much was read, the counts of each task, and the worst examples. workers: processes; the result does not depend on
    them.
    """
    work.mkdir(parents=True, exist_ok=True)
    write_jsonl(work / "items.jsonl", items)
    index = ItemIndex(item["text"] for item in items)
    evidence: dict[int, Evidence] = defaultdict(Evidence)
    read: Counter[str] = Counter()
    with Workers(workers, init_worker, (work / "items.jsonl",)) as pool:
        for of_file, counted in pool.map(scan, files):
            read.update(counted)
            for number, more in of_file.items():
                evidence[number].add(more)
    leaked = [record(items[number], total, len(index.grams[number])) for number, total in evidence.items()]
    leaked.sort(key=severity)
    result = {
        "gram_words": GRAM,
        "shingle_words": SHINGLE,
        "shortest_words": SHORTEST,
        "near_jaccard": NEAR,
        "read": {"files": len(files), **read},
        "tasks": by_task(items, index.sizes, leaked),
        "worst": leaked[:WORST],
    }
    write_jsonl(out / "leaked.jsonl", leaked)
    write_json(out / "leaks.json", result)
    return result


def by_task(
    items: Sequence[dict[str, str]], sizes: Sequence[int], leaked: Sequence[dict[str, Any]]
) -> dict[str, dict[str, int]]:
    """Count the items of each task, those too short to judge, and those that leaked.

    sizes: words of each item's n-grams, 0: too short.
    """
    tasks: dict[str, dict[str, int]] = {}
    for item, size in zip(items, sizes, strict=True):
        counts = tasks.setdefault(item["task"], {"items": 0, "too_short": 0, "verbatim": 0, "near": 0})
        counts["items"] += 1
        counts["too_short"] += not size
    for row in leaked:
        tasks[row["task"]]["verbatim"] += row["share"] > 0
        tasks[row["task"]]["near"] += row["jaccard"] >= NEAR
    return tasks


def all_training_files(text_dirs: Iterable[Path], instructions_dir: Path) -> list[Path]:
    """Return the files of all training data: every text of these folders, and the instructions.

    text_dirs: a corpus, and the folders of further sources.
    """
    files: list[Path] = []
    for folder in text_dirs:
        names = {path.name.split(".")[0] for path in (folder / "text").glob("*.train*")}
        files += [file for name in sorted(names) for file in training_files(folder, name)]
    return [*files, *instruction_files(instructions_dir)]


def record(item: dict[str, str], evidence: Evidence, grams: int) -> dict[str, Any]:
    """Return the record of a leaked item. grams: its number of n-grams.

    share: the fraction of n-grams that training text contains; jaccard: of the nearest passage, 0 below NEAR.
    """
    return {
        "task": item["task"],
        "id": item["id"],
        "share": round(len(evidence.grams) / grams, 4),
        "jaccard": round(evidence.jaccard, 4),
        "text": shorten(item["text"]),
        "training": evidence.near or evidence.passage,
    }


def severity(row: dict[str, Any]) -> tuple[float, float, str, str]:
    """Return a sort key, worst first: near-duplicates by similarity, then by the fraction of n-grams."""
    return -row["jaccard"], -row["share"], row["task"], row["id"]
