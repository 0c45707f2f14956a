"""The corpus stage for text from the Hub or from local folders of the same layout.

It is taken once, up to a number of bytes, as Parquet files.

Leaves `text/<language>.train/00000.parquet` and so on (`id`, `text`; about 32 MB of text each),
`text/<language>.<dev|test>.jsonl`, `counts.json`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import hub_data
from common.errors import BadInput
from common.files import write_json, write_jsonl
from train.data.corpus.documents import normalised, split_of
from train.data.corpus.shards import Reading, Row, link, take
from train.data.processes import Workers
from train.settings import CorpusOptions, HubCorpusSettings, TextSource

HELD_OUT = ("dev", "test")


@dataclass(frozen=True)
class Text:
    """One of the two texts of a corpus."""

    name: str  # of its config key: corpus.text or corpus.english
    language: str
    source: TextSource
    folder: str | None  # the folder of a local data set
    most_bytes: int | None  # of training text to take; None: all

    @property
    def key(self) -> str:
        """Return the config key that messages name."""
        return f"corpus.{self.name}"


def document(text: str, *, seed: int, dev: float, test: float) -> tuple[str, Row] | None:
    """Return a document's split and row, or None if it is empty.

    Its name is a hash of its letters and digits, case folded, and its split goes by its name: what is the same text but
    for case, spaces and punctuation falls into the same split, so that no held-out document stands in training text.
    """
    text = text.strip()
    if not text:
        return None
    name = hashlib.sha256(normalised(text).encode()).hexdigest()[:16]
    return split_of(name, seed, dev, test), {"id": name, "text": text}


def build(settings: HubCorpusSettings, options: CorpusOptions, out: Path, work: Path) -> None:
    """Write the corpus to `out`; resumes in `work` if an earlier call was killed.

    Raises BadInput for a source that cannot be read or a split that stays empty.
    """
    texts = (
        Text("text", settings.language, settings.text, options.text_folder, settings.text_bytes),
        Text("english", "en", settings.english, options.english_folder, settings.english_bytes),
    )
    counts: dict[str, Any] = {"languages": {}, "settings": settings.model_dump()}
    with Workers(options.workers) as workers:
        for text in texts:
            counts["languages"][text.language] = _write_text(text, settings, out / "text", work / text.name, workers)
    write_json(out / "counts.json", counts)


def _write_text(text: Text, settings: HubCorpusSettings, folder: Path, work: Path, workers: Workers) -> dict[str, Any]:
    """Write the files of one language, and return what is counted of them."""
    language, key, source = text.language, text.key, text.source.located(text.folder)
    commit = hub_data.commit_of(source, key)
    reading = Reading(
        replace(source, revision=commit or source.revision),
        (text.source.column,),
        key,
        document,
        {"seed": settings.seed, "dev": settings.dev, "test": settings.test},
        text.most_bytes,
    )
    held_out: dict[str, dict[str, Row]] = {split: {} for split in HELD_OUT}
    rows = size = files = 0
    for part in take(reading, work, workers, settings.seed):
        for split, row in part.held_out:
            held_out[split][row["id"]] = row  # once, though it may come twice
        if part.rows:
            link(part, folder / f"{language}.train" / f"{files:05d}.parquet")
            rows, size, files = rows + part.rows, size + part.bytes, files + 1
    counts: dict[str, Any] = {"commit": commit, "train": {"documents": rows, "bytes": size, "files": files}}
    if not rows:
        raise BadInput(
            f"{key}.dataset={source.dataset}: no {language} document is in the train split. "
            "Check that the data set is not empty."
        )
    for split in HELD_OUT:
        documents = list(held_out[split].values())
        if not documents:
            raise BadInput(
                f"{key}: no {language} document is in the {split} split. "
                f"Give more text, or set a larger corpus.{split}."
            )
        write_jsonl(folder / f"{language}.{split}.jsonl", documents)
        counts[split] = {"documents": len(documents), "bytes": sum(len(row["text"].encode()) for row in documents)}
    return counts
