"""Data sets of the Hub, or local folders of the same layout -> Parquet shards that fit in memory; a corpus of them.

Several processes read, each one file of the source at a time.

Resumable: a shard is renamed into place with a note of how far its file was read, and a later call resumes from there.
Deterministic: a shard depends on the source alone. A seeded order of the source's files selects the shards that are
used, whichever process was first.

`build_from_hub` leaves `text/<language>.train/00000.parquet` and so on (`id`, `text`; about 32 MB of text each),
`text/<language>.<dev|test>.jsonl` and `counts.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub_data
from common.errors import BadInput
from common.files import write_atomic, write_json, write_jsonl
from common.hub_data import Source
from common.processes import Workers
from train.data.corpus.documents import normalised, split_of
from train.settings import CorpusOptions, HubCorpusSettings, TextSource

if TYPE_CHECKING:
    from datasets import IterableDataset

HELD_OUT = ("dev", "test")
SHARD_BYTES = 32 * 2**20  # UTF-8 bytes of text in a shard; a process has a few shards in memory

Row = dict[str, Any]  # texts, or messages


@dataclass(frozen=True)
class ParsedRow:
    """What one row of a source, or several in sequence, became: a training row, a held-out row or nothing."""

    read: int  # rows of the source's file so far
    split: str | None  # None: left out
    row: Row
    bytes: int  # of UTF-8 text in the row
    counted: str = ""  # the count that it adds to, besides rows


RowReader = Callable[
    ["ReadPlan", Any, int, str], Iterator[ParsedRow]
]  # also: a file's stream, rows before it, its name


@dataclass(frozen=True)
class ReadPlan:
    """How a source is read."""

    source: Source
    key: str  # the config key of the source, for messages
    reader: RowReader  # can be pickled
    max_bytes: int | None = None  # of UTF-8 text to take for training; None: all


@dataclass(frozen=True)
class Shard:
    """A Parquet file of training rows, and the rows of the source's file that were read for it."""

    path: Path
    rows: int
    bytes: int  # of UTF-8 text in the rows
    held_out: list[tuple[str, Row]]  # rows of other splits
    read: int  # rows of the source's file so far
    last: bool  # whether that file is read to its end
    counted: dict[str, int] = field(default_factory=dict)  # rows that were read for it, by what they are counted as


def build_from_hub(settings: HubCorpusSettings, options: CorpusOptions, out: Path, work: Path) -> None:
    """Write the corpus to `out`; resume in `work` if an earlier call was killed.

    Raises BadInput for a source that cannot be read or a split that stays empty.
    """
    texts = (
        HubText("text", settings.language, settings.text, options.text_folder, settings.text_bytes),
        HubText("english", "en", settings.english, options.english_folder, settings.english_bytes),
    )
    counts: dict[str, Any] = {"languages": {}, "settings": settings.model_dump()}
    with Workers(options.workers) as workers:
        for text in texts:
            counts["languages"][text.language] = _write_text(text, settings, out / "text", work / text.name, workers)
    write_json(out / "counts.json", counts)


@dataclass(frozen=True)
class HubText:
    """One of the two texts of a corpus."""

    name: str  # of its config key: corpus.text or corpus.english
    language: str
    source: TextSource
    folder: str | None  # the folder of a local data set
    max_bytes: int | None  # of training text to take; None: all


def _write_text(
    text: HubText, settings: HubCorpusSettings, folder: Path, work: Path, workers: Workers
) -> dict[str, Any]:
    """Write the files of one language, and return what is counted of them."""
    language, key, source = text.language, f"corpus.{text.name}", text.source.located(text.folder)
    commit = hub_data.commit_of(source, key)
    parse = partial(parse_document, seed=settings.seed, dev=settings.dev, test=settings.test)
    pinned = replace(source, revision=commit or source.revision)
    plan = ReadPlan(pinned, key, partial(read_texts, columns=(text.source.column,), parse=parse), text.max_bytes)
    held_out: dict[str, dict[str, Row]] = {split: {} for split in HELD_OUT}
    rows = size = files = 0
    for shard in read_shards(plan, work, workers, settings.seed):
        for split, row in shard.held_out:
            held_out[split][row["id"]] = row  # once, though it may come twice
        if shard.rows:
            link_shard(shard, folder / f"{language}.train" / f"{files:05d}.parquet")
            rows, size, files = rows + shard.rows, size + shard.bytes, files + 1
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


def parse_document(text: str, *, seed: int, dev: float, test: float) -> tuple[str, Row] | None:
    """Return a document's split and row, or None if it is empty.

    Its name is a hash of its letters and digits, case folded, and the name decides its split. Texts that differ only in
    case, spaces and punctuation are therefore in the same split, so that no held-out document is in training text.
    """
    text = text.strip()
    if not text:
        return None
    name = hashlib.sha256(normalised(text).encode()).hexdigest()[:16]
    return split_of(name, seed, dev, test), {"id": name, "text": text}


def read_texts(
    plan: ReadPlan,
    stream: IterableDataset,
    before: int,
    file: str,
    *,
    columns: tuple[str, ...],
    parse: Callable[..., tuple[str, Row] | None],
) -> Iterator[ParsedRow]:
    """Yield the rows of a file. parse: texts of the columns -> split and row, or None to leave the row out."""
    rows = hub_data.rows(stream, columns, plan.source, plan.key, before=before, file=file)
    for read, texts in enumerate(rows, start=before + 1):
        split, row = parse(*texts) or (None, {})
        yield ParsedRow(read, split, row, sum(len(text.encode()) for text in texts))


def read_shards(plan: ReadPlan, work: Path, workers: Workers, seed: int) -> Iterator[Shard]:
    """Yield the shards of a source, in a seeded order of its files, until they contain `max_bytes`.

    `work` keeps them, for a later call too.
    """
    order = list(range(open_source(plan.source, plan.key).num_shards))
    random.Random(f"{seed}:{plan.key}").shuffle(order)
    taken = 0
    for shards in workers.map(read_file, ((plan, number, work) for number in order)):
        for shard in shards:
            if plan.max_bytes is not None and taken >= plan.max_bytes:
                return
            taken += shard.bytes
            yield shard


@cache
def open_source(source: Source, key: str) -> IterableDataset:
    """Return the stream of a source. Cached, as listing a large data set's thousands of files takes long."""
    return hub_data.open_stream(source, key)


def read_file(task: tuple[ReadPlan, int, Path]) -> list[Shard]:
    """Read one file of a source into shards, after those that are there already.

    Stops when they contain `max_bytes`, which is all that can be taken.
    """
    plan, number, work = task
    folder = work / f"{number:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    shards = [read_shard(path) for path in sorted(folder.glob("[0-9]*.json"))]  # without leftovers of a kill
    if shards and shards[-1].last:
        return shards
    read, total = shards[-1].read if shards else 0, sum(shard.bytes for shard in shards)
    stream = open_source(plan.source, plan.key)
    file = f"file {number + 1} of {stream.num_shards}" if stream.num_shards > 1 else ""
    shard = OpenShard(read)
    for parsed in plan.reader(plan, stream.shard(stream.num_shards, number).skip(read), read, file):
        shard.add(parsed)
        if shard.bytes >= SHARD_BYTES:
            shards.append(shard.write(folder / f"{len(shards):05d}.parquet", last=False))
            total += shard.bytes
            shard = OpenShard(parsed.read)
            if plan.max_bytes is not None and total >= plan.max_bytes:
                break
    shards.append(shard.write(folder / f"{len(shards):05d}.parquet", last=True))
    return shards


@dataclass
class OpenShard:
    """A shard that is being filled."""

    read: int
    rows: list[Row] = field(default_factory=list)
    held_out: list[tuple[str, Row]] = field(default_factory=list)
    bytes: int = 0
    counted: Counter[str] = field(default_factory=Counter)

    def add(self, parsed: ParsedRow) -> None:
        """Add what became of a row."""
        self.read = parsed.read
        self.counted.update([parsed.counted] if parsed.counted else [])
        if parsed.split == "train":
            self.rows.append(parsed.row)
            self.bytes += parsed.bytes
        elif parsed.split:
            self.held_out.append((parsed.split, parsed.row))

    def write(self, path: Path, *, last: bool) -> Shard:
        """Publish the shard."""
        return write_shard(path, self.rows, self.bytes, self.held_out, self.read, last=last, counted=self.counted)


def write_shard(
    path: Path,
    rows: list[Row],
    size: int,
    held_out: list[tuple[str, Row]],
    read: int,
    *,
    last: bool,
    counted: Mapping[str, int] | None = None,
) -> Shard:
    """Publish a shard atomically: the rows first, then the note that makes it count."""
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    write_atomic(path, lambda staging: parquet.write_table(pyarrow.table(columns), staging, compression="zstd"))
    note = {"rows": len(rows), "bytes": size, "held_out": held_out, "read": read, "last": last}
    note |= {"counted": dict(counted)} if counted else {}
    write_atomic(path.with_suffix(".json"), json.dumps(note, ensure_ascii=False))
    return Shard(path, len(rows), size, held_out, read, last, dict(counted or {}))


def read_shard(note: Path) -> Shard:
    """Return a shard that an earlier call published."""
    return Shard(note.with_suffix(".parquet"), **json.loads(note.read_text(encoding="utf-8")))


def link_shard(shard: Shard, path: Path) -> None:
    """Link a shard to its path among the results, or copy it. The work folder keeps it for a later call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(shard.path, path)
    except OSError:  # a file system without hard links
        shutil.copy(shard.path, path)
