"""A streamed data set -> Parquet files on disk, each small enough for memory.

Several processes read, each a file of the source at a time.

Resumable: a part is renamed into place with a note of how far its file was read, and a later call goes on from there.
Deterministic: a part depends on the source and on nothing else, and which parts are taken goes by a seeded order of the
source's files, not by who was first.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub_data
from common.files import publish, write_whole
from common.hub_data import Source
from train.data.processes import Workers

if TYPE_CHECKING:
    from datasets import IterableDataset

PART_BYTES = 32 * 2**20  # UTF-8 bytes of text in a part: a process holds a few of them in memory

Row = dict[str, str]
Sort = Callable[..., tuple[str, Row] | None]  # texts of the columns, `about` -> a split and a row; None: left out


@dataclass(frozen=True)
class Reading:
    """How a source is read: its columns, what becomes of their texts, and how much is wanted."""

    source: Source
    columns: tuple[str, ...]
    key: str  # the config key of the source, for refusals
    sort: Sort
    about: Mapping[str, Any] = field(default_factory=dict)  # keywords of `sort`
    most_bytes: int | None = None  # of UTF-8 text to take for training; None: all


@dataclass(frozen=True)
class Part:
    """A Parquet file of training rows, and what of the source's file was read for it."""

    path: Path
    rows: int
    bytes: int  # of UTF-8 text in the rows
    held_out: list[tuple[str, Row]]  # rows of other splits
    read: int  # rows of the source's file so far
    last: bool  # whether that file is read to its end


def take(reading: Reading, work: Path, workers: Workers, seed: int) -> Iterator[Part]:
    """The parts of a source, in a seeded order of its files, until they hold `most_bytes`.

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
    """The stream of a source; looked up once a process, since a large data set has thousands of files to list."""
    return hub_data.open_stream(source, key)


def read_file(task: tuple[Reading, int, Path]) -> list[Part]:
    """Reads one file of a source into parts, after those that are there already.

    Stops when they hold `most_bytes`, which is all that can be taken.
    """
    reading, number, work = task
    folder = work / f"{number:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [read_part(path) for path in sorted(folder.glob("[0-9]*.json"))]  # not what a kill left aside
    if parts and parts[-1].last:
        return parts
    read = parts[-1].read if parts else 0
    stream = opened(reading.source, reading.key)
    file = f"file {number + 1} of {stream.num_shards}" if stream.num_shards > 1 else ""
    stream = stream.shard(stream.num_shards, number).skip(read)
    total = sum(part.bytes for part in parts)
    rows: list[Row] = []
    held_out: list[tuple[str, Row]] = []
    size = 0
    for texts in hub_data.rows(stream, reading.columns, reading.source, reading.key, before=read, file=file):
        read += 1
        sorted_in = reading.sort(*texts, **reading.about)
        if sorted_in is None:
            continue
        split, row = sorted_in
        if split != "train":
            held_out.append(sorted_in)
            continue
        rows.append(row)
        size += sum(len(text.encode()) for text in texts)
        if size >= PART_BYTES:
            parts.append(write_part(folder / f"{len(parts):05d}.parquet", rows, size, held_out, read, last=False))
            total += size
            rows, held_out, size = [], [], 0
            if reading.most_bytes is not None and total >= reading.most_bytes:
                break
    parts.append(write_part(folder / f"{len(parts):05d}.parquet", rows, size, held_out, read, last=True))
    return parts


def write_part(
    path: Path, rows: list[Row], size: int, held_out: list[tuple[str, Row]], read: int, *, last: bool
) -> Part:
    """Publishes a part: the rows first, then the note that makes it count, each whole or not there."""
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    publish(path, lambda aside: parquet.write_table(pyarrow.table(columns), aside, compression="zstd"))
    note = {"rows": len(rows), "bytes": size, "held_out": held_out, "read": read, "last": last}
    write_whole(path.with_suffix(".json"), json.dumps(note, ensure_ascii=False))
    return Part(path, len(rows), size, held_out, read, last)


def read_part(note: Path) -> Part:
    """A part that an earlier call published."""
    return Part(note.with_suffix(".parquet"), **json.loads(note.read_text(encoding="utf-8")))


def link(part: Part, path: Path) -> None:
    """Gives a part its place among the results, without a copy where the file system can.

    The work folder keeps it for a later call.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(part.path, path)
    except OSError:  # a file system without hard links
        shutil.copy(part.path, path)
