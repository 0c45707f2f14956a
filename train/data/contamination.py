"""Evaluation items that training text contains, word for word or nearly.

They are found and reported, for any corpus and any set of tasks.

verbatim   13 words in a row that an item and the training text share, letters and digits only, case folded: the n-grams
           of GPT-3's contamination study (Brown et al. 2020, appendix C) and of lm-eval's decontamination. An item of
           8 to 12 words is looked for as a whole; a shorter one cannot be judged.
near       a passage whose set of 5-word shingles has a Jaccard similarity of 0.8 or more with the item's: the
           near-duplicates of Lee et al. 2022 (arXiv 2107.06499). They estimate it by MinHash, since they compare every
           document with every other. The items here are few enough to be indexed whole, so that it is computed and not
           estimated, and none is missed.

The training text is read once, file by file, by several processes; memory holds the items and one file a process.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import read_jsonl, write_json, write_jsonl
from train.data.corpus.documents import read_rows, training_files
from train.data.instructions import instruction_files
from train.data.item_index import GRAM, NEAR, SHINGLE, SHORTEST, Index, shortened
from train.data.processes import Workers
from train.data.tokenization import batched, texts_of

WORST = 20  # items in the report
DOCUMENTS_AT_ONCE = 256  # searched together


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


_index: Index | None = None  # of this process


def init_worker(items: Path) -> None:
    """Prepare a process to search for items, rows with a `text`."""
    global _index
    _index = Index(row["text"] for row in read_jsonl(items))


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
    """Look for items (`{"task", "id", "text"}`) in files of training text.

    Leaves `leaks.json` and `leaked.jsonl` (an item a line, worst first).

    Returns what `leaks.json` holds: how much was read, the counts of each task, and the worst examples. `workers`:
    processes; nothing depends on it.
    """
    work.mkdir(parents=True, exist_ok=True)
    write_jsonl(work / "items.jsonl", items)
    index = Index(item["text"] for item in items)
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


def all_training_files(corpus_dir: Path, instructions_dir: Path) -> list[Path]:
    """Return all that is trained on: the text of both languages, and the instructions."""
    folders = (corpus_dir / "text").glob("*.train*")
    languages = sorted({folder.name.split(".")[0] for folder in folders})
    text = [file for language in languages for file in training_files(corpus_dir, language)]
    return [*text, *instruction_files(instructions_dir)]


def record(item: dict[str, str], evidence: Evidence, grams: int) -> dict[str, Any]:
    """Return the record of a leaked item of so many n-grams.

    share: of them that stand in training text; jaccard: of the nearest passage, 0 below NEAR.
    """
    return {
        "task": item["task"],
        "id": item["id"],
        "share": round(len(evidence.grams) / grams, 4),
        "jaccard": round(evidence.jaccard, 4),
        "text": shortened(item["text"]),
        "training": evidence.near or evidence.passage,
    }


def severity(row: dict[str, Any]) -> tuple[float, float, str, str]:
    """Return a sort key, worst first: near-duplicates by similarity, then by the fraction of n-grams."""
    return -row["jaccard"], -row["share"], row["task"], row["id"]
