"""A streamed data set -> Parquet files on disk, each small enough for memory.

Several processes read, each a file of the source at a time.

Resumable: a part is renamed into place with a note of how far its file was read, and a later call resumes from there.
Deterministic: a part depends on the source and on nothing else, and which parts are taken goes by a seeded order of the
source's files, not by who was first.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub_data
from common.files import write_atomic
from common.hub_data import Source
from train.data.processes import Workers

if TYPE_CHECKING:
    from datasets import IterableDataset

PART_BYTES = 32 * 2**20  # UTF-8 bytes of text in a part; a process has a few parts in memory

Row = dict[str, Any]  # texts, or messages


@dataclass(frozen=True)
class Taken:
    """The training row, held-out row or nothing that a row of a source becomes, or several rows in sequence."""

    read: int  # rows of the source's file so far
    split: str | None  # None: left out
    row: Row
    bytes: int  # of UTF-8 text in the row
    counted: str = ""  # the count that it adds to, besides rows


Take = Callable[..., Iterator[Taken]]  # a reading, the stream of a file, rows before it, the file's name, `about`


@dataclass(frozen=True)
class Reading:
    """The way a source is read: columns, a function for its rows, and the number of bytes."""

    source: Source
    columns: tuple[str, ...] = ()  # of text, for `sort`
    key: str = ""  # the config key of the source, for messages
    sort: Callable[..., tuple[str, Row] | None] | None = None  # texts, `about` -> split and row; None: left out
    about: Mapping[str, Any] = field(default_factory=dict)  # keywords of `sort` or `take`
    most_bytes: int | None = None  # of UTF-8 text to take for training; None: all
    take: Take | None = None  # reads rows as they are, in place of `sort`


@dataclass(frozen=True)
class Part:
    """A Parquet file of training rows, and the rows of the source's file that were read for it."""

    path: Path
    rows: int
    bytes: int  # of UTF-8 text in the rows
    held_out: list[tuple[str, Row]]  # rows of other splits
    read: int  # rows of the source's file so far
    last: bool  # whether that file is read to its end
    counted: dict[str, int] = field(default_factory=dict)  # rows that were read for it, by what they are counted as


def take(reading: Reading, work: Path, workers: Workers, seed: int) -> Iterator[Part]:
    """Yield the parts of a source, in a seeded order of its files, until they hold `most_bytes`.

    `work` keeps them, for a later call too.
    """
    order = list(range(opened(reading.source, reading.key).num_shards))
    random.Random(f"{seed}:{reading.key}").shuffle(order)
    taken = 0
    for parts in workers.map(read_file, ((reading, number, work) for number in order)):
        for part in parts:
            if reading.most_bytes is not None and taken >= reading.most_bytes:
                return
            taken += part.bytes
            yield part


@cache
def opened(source: Source, key: str) -> IterableDataset:
    """Return the stream of a source; looked up once a process, since a large data set has thousands of files to
    list.
    """
    return hub_data.open_stream(source, key)


def read_file(task: tuple[Reading, int, Path]) -> list[Part]:
    """Read one file of a source into parts, after those that are there already.

    Stops when they hold `most_bytes`, which is all that can be taken.
    """
    reading, number, work = task
    folder = work / f"{number:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [read_part(path) for path in sorted(folder.glob("[0-9]*.json"))]  # without leftovers of a kill
    if parts and parts[-1].last:
        return parts
    read = parts[-1].read if parts else 0
    stream = opened(reading.source, reading.key)
    file = f"file {number + 1} of {stream.num_shards}" if stream.num_shards > 1 else ""
    stream = stream.shard(stream.num_shards, number).skip(read)
    total = sum(part.bytes for part in parts)
    open_part = OpenPart(read)
    take = reading.take or by_texts
    for taken in take(reading, stream, read, file, **reading.about):
        open_part.add(taken)
        if open_part.bytes >= PART_BYTES:
            parts.append(open_part.write(folder / f"{len(parts):05d}.parquet", last=False))
            total += open_part.bytes
            open_part = OpenPart(taken.read)
            if reading.most_bytes is not None and total >= reading.most_bytes:
                break
    parts.append(open_part.write(folder / f"{len(parts):05d}.parquet", last=True))
    return parts


def by_texts(reading: Reading, stream: IterableDataset, before: int, file: str, **about: Any) -> Iterator[Taken]:
    """Yield the rows of a file by the texts of the reading's columns, as its `sort` says."""
    assert reading.sort is not None
    rows = hub_data.rows(stream, reading.columns, reading.source, reading.key, before=before, file=file)
    for read, texts in enumerate(rows, start=before + 1):
        split, row = reading.sort(*texts, **about) or (None, {})
        yield Taken(read, split, row, sum(len(text.encode()) for text in texts))


@dataclass
class OpenPart:
    """A part that is being filled."""

    read: int
    rows: list[Row] = field(default_factory=list)
    held_out: list[tuple[str, Row]] = field(default_factory=list)
    bytes: int = 0
    counted: Counter[str] = field(default_factory=Counter)

    def add(self, taken: Taken) -> None:
        """Take in what became of a row."""
        self.read = taken.read
        self.counted.update([taken.counted] if taken.counted else [])
        if taken.split == "train":
            self.rows.append(taken.row)
            self.bytes += taken.bytes
        elif taken.split:
            self.held_out.append((taken.split, taken.row))

    def write(self, path: Path, *, last: bool) -> Part:
        """Publish it."""
        return write_part(path, self.rows, self.bytes, self.held_out, self.read, last=last, counted=self.counted)


def write_part(
    path: Path,
    rows: list[Row],
    size: int,
    held_out: list[tuple[str, Row]],
    read: int,
    *,
    last: bool,
    counted: Mapping[str, int] | None = None,
) -> Part:
    """Publish a part: the rows first, then the note that makes it count, each whole or not there."""
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    write_atomic(path, lambda aside: parquet.write_table(pyarrow.table(columns), aside, compression="zstd"))
    note = {"rows": len(rows), "bytes": size, "held_out": held_out, "read": read, "last": last}
    note |= {"counted": dict(counted)} if counted else {}
    write_atomic(path.with_suffix(".json"), json.dumps(note, ensure_ascii=False))
    return Part(path, len(rows), size, held_out, read, last, dict(counted or {}))


def read_part(note: Path) -> Part:
    """Return a part that an earlier call published."""
    return Part(note.with_suffix(".parquet"), **json.loads(note.read_text(encoding="utf-8")))


def link(part: Part, path: Path) -> None:
    """Give a part its place among the results, without a copy where the file system can.

    The work folder keeps it for a later call.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(part.path, path)
    except OSError:  # a file system without hard links
        shutil.copy(part.path, path)
