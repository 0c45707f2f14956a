"""Blocks of tokens: chunked from a stream, packed with whole examples, interleaved, written to disk and read back."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Tokens = NDArray[Any]  # uint16 or uint32


def interleave(shares: Sequence[float]) -> Iterator[int]:
    """Yield the source of each next block: the one that is furthest behind its fraction.

    Every window of blocks therefore has the mixture to within one block.
    """
    counts = [0] * len(shares)
    for total in itertools.count(1):
        behind = [share * total - count for share, count in zip(shares, counts, strict=True)]
        chosen = max(range(len(shares)), key=behind.__getitem__)
        counts[chosen] += 1
        yield chosen


def mixture(english: float, sources: Mapping[str, float]) -> list[float]:
    """Return the fractions of the blocks of CT: of the language, of English, and of each source by name."""
    further = [sources[name] for name in sorted(sources)]
    return [1 - english - sum(further), english, *further]


@dataclass(frozen=True)
class TextSeen:
    """The text of one language or source that CT has read at a budget."""

    tokens: int
    unique_tokens: int
    epochs: float


def text_seen(counts: Mapping[str, Any], budget: int) -> dict[str, TextSeen]:
    """Return what the first `budget` tokens of CT blocks contain, by language and source.

    counts: their `counts.json`. The result is empty if it is older than the key `text_tokens`.
    """
    texts = counts.get("text_tokens", {})
    size, fractions = counts["tokens"] // counts["blocks"], mixture(counts["english_share"], counts.get("sources", {}))
    order = Counter(itertools.islice(interleave(fractions), min(budget // size, counts["blocks"])))
    return {
        language: TextSeen(order[source] * size, min(order[source] * size, tokens), order[source] * size / tokens)
        for source, (language, tokens) in enumerate(texts.items())
        if tokens
    }


def chunk(stream: Iterable[Tokens], size: int) -> Iterator[Tokens]:
    """Yield a stream of arrays of any length as blocks of `size` tokens, without the last, incomplete one."""
    rest: list[Tokens] = []  # shorter than a block in all
    length = 0  # of the rest
    for piece in stream:
        rest.append(piece)
        length += len(piece)
        if length < size:
            continue
        tokens = np.concatenate(rest) if len(rest) > 1 else piece
        full = length - length % size
        yield from tokens[:full].reshape(-1, size)
        rest, length = [tokens[full:]], length - full


class OpenBlocks:
    """Blocks that are being filled, indexed by their free space.

    `by_room[room]` contains the open blocks with this much space, oldest first.
    """

    def __init__(self, size: int) -> None:
        self.by_room: list[list[int]] = [[] for _ in range(size + 1)]  # heaps of block numbers
        self.rooms = 0  # bit r is set where some open block has room r

    def add(self, block: int, room: int) -> None:
        """Open a block, or put it back with less room."""
        heapq.heappush(self.by_room[room], block)
        self.rooms |= 1 << room

    def take(self, length: int) -> tuple[int, int] | None:
        """Remove the fullest block with room for `length` tokens; return its number and its room, or None."""
        fitting = self.rooms >> length << length  # without the rooms below `length`
        if not fitting:
            return None
        room = lowest_bit(fitting)
        block = heapq.heappop(self.by_room[room])
        if not self.by_room[room]:
            self.rooms ^= 1 << room
        return block, room


def lowest_bit(number: int) -> int:
    """Return the index of the lowest bit that is set; `number` is not 0."""
    return (number & -number).bit_length() - 1


def best_fit(lengths: Iterable[tuple[int, int]], size: int, open_blocks: int | None) -> Iterator[list[int]]:
    """Pack examples, given as (name, length), into blocks of `size`; yield the names of each block.

    An example goes where it leaves the least room, and of blocks with the same room into the oldest. If more than
    `open_blocks` are open, the fullest is yielded; those still open at the end follow, oldest first. With all blocks
    open to the end (None) and the longest examples first, this is best-fit decreasing, as in Ding et al. 2024 (arXiv
    2404.10830), in O(n log n) for n examples.
    """
    names: dict[int, list[int]] = {}  # of each open block
    opened = OpenBlocks(size)
    numbers = itertools.count()
    for name, length in lengths:
        block, room = opened.take(length) or (next(numbers), size)
        names.setdefault(block, []).append(name)
        opened.add(block, room - length)
        if open_blocks is not None and len(names) > open_blocks:
            fullest = opened.take(0)
            assert fullest is not None
            yield names.pop(fullest[0])
    yield from names.values()


class BlockFile:
    """A `.npy` file of (blocks, size) that grows by one block at a time, so that memory contains one.

    Byte for byte the output of `np.save`.
    """

    def __init__(self, path: Path, size: int, dtype: type) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.size, self.dtype, self.count = size, np.dtype(dtype), 0
        self.file: IO[bytes] = path.open("wb", buffering=2**20)
        self._header()

    def _header(self) -> None:
        """Write the header. Its length is fixed, as numpy leaves space for the first axis to grow."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.count, self.size),
        }
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, block: Sequence[int] | Tokens) -> None:
        """Write one more block, of `size` values."""
        self.file.write(np.asarray(block, dtype=self.dtype).tobytes())
        self.count += 1

    def close(self) -> None:
        """Write the number of blocks into the header."""
        self.file.seek(0)
        self._header()
        self.file.close()


def dtype_for(vocabulary: int) -> type:
    """Return the smallest unsigned type that holds the ids of a vocabulary."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32


class Blocks:
    """A map-style dataset for torch's data loader over the memory-mapped blocks of a folder.

    A row is one block: `input_ids`, `labels` and, for SFT, `position_ids`, each int64 of (block_size,).
    """

    def __init__(self, folder: Path) -> None:
        self.columns = {"input_ids": np.load(folder / "blocks.npy", mmap_mode="r")}
        for name, file in (("labels", "labels.npy"), ("position_ids", "positions.npy")):
            if (folder / file).exists():
                self.columns[name] = np.load(folder / file, mmap_mode="r")
        self.columns.setdefault("labels", self.columns["input_ids"])

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        import torch

        return {name: torch.from_numpy(column[index].astype(np.int64)) for name, column in self.columns.items()}
