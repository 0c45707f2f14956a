"""Blocks of tokens: cut from a stream, filled with whole examples, mixed from several sources, written to disk one by one."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[Any]  # uint16 or uint32


def interleave(shares: Sequence[float]) -> Iterator[int]:
    """Which source the next block comes from: always the one furthest behind its share, so that every window has the mixture within one block."""
    counts = [0] * len(shares)
    for total in itertools.count(1):
        behind = [share * total - count for share, count in zip(shares, counts, strict=True)]
        chosen = max(range(len(shares)), key=behind.__getitem__)
        counts[chosen] += 1
        yield chosen


def cut(stream: Iterable[Tokens], size: int) -> Iterator[Tokens]:
    """A stream of tokens, given in pieces of any length, as blocks of `size`; the last, incomplete one is left out."""
    rest: list[Tokens] = []  # shorter than a block in all
    held = 0
    for piece in stream:
        rest.append(piece)
        held += len(piece)
        if held < size:
            continue
        tokens = np.concatenate(rest) if len(rest) > 1 else piece
        whole = held - held % size
        yield from tokens[:whole].reshape(-1, size)
        rest, held = [tokens[whole:]], held - whole


def best_fit(lengths: Iterable[tuple[int, int]], size: int, open_blocks: int | None) -> Iterator[list[int]]:
    """Examples, given as (name, length), put together in blocks of `size`: each goes where it leaves the least room. Yields the names of each block.

    A block is given away when more than `open_blocks` are open, the fullest first; those still open at the end follow, the oldest first. With all
    blocks open to the end (None) and the longest examples first, this is best-fit decreasing, as in Ding et al. 2024 (arXiv 2404.10830): of n
    examples, in O(n log n). Of blocks with the same room, the oldest is taken.
    """
    blocks: dict[int, list[int]] = {}
    by_room: list[list[int]] = [[] for _ in range(size + 1)]  # heaps of the open blocks with so much room
    rooms = 0  # a bit for every room that some open block has
    fresh = itertools.count()
    for name, length in lengths:
        fitting = rooms >> length << length
        if fitting:
            room = (fitting & -fitting).bit_length() - 1
            block = heapq.heappop(by_room[room])
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, block = size, next(fresh)
            blocks[block] = []
        blocks[block].append(name)
        heapq.heappush(by_room[room - length], block)
        rooms |= 1 << (room - length)
        if open_blocks is not None and len(blocks) > open_blocks:
            fullest = (rooms & -rooms).bit_length() - 1
            yield blocks.pop(heapq.heappop(by_room[fullest]))
            if not by_room[fullest]:
                rooms ^= 1 << fullest
    yield from blocks.values()


class BlockFile:
    """A `.npy` file of (blocks, size) that grows by a block at a time, so that blocks need not be held in memory; byte for byte what `np.save` writes."""

    def __init__(self, path: Path, size: int, kind: type) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.size, self.kind, self.count = size, np.dtype(kind), 0
        self.file: IO[bytes] = path.open("wb", buffering=2**20)
        self._header()

    def _header(self) -> None:
        """numpy leaves room in the header for the first axis to grow: its length does not depend on the count."""
        about = {
            "descr": np.lib.format.dtype_to_descr(self.kind),
            "fortran_order": False,
            "shape": (self.count, self.size),
        }
        np.lib.format.write_array_header_1_0(self.file, about)

    def append(self, block: Sequence[int] | Tokens) -> None:
        """Writes one more block, of `size` values."""
        self.file.write(np.asarray(block, dtype=self.kind).tobytes())
        self.count += 1

    def close(self) -> None:
        """Writes down how many blocks there are."""
        self.file.seek(0)
        self._header()
        self.file.close()


def kind_for(vocabulary: int) -> type:
    """The smallest unsigned type that holds the ids of a vocabulary."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32
