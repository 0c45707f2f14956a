"""Text files -> tokens on disk, each file once, by several processes; and the tokens as a stream in a seeded order.

What is made of a file is a folder with `tokens.npy` (all documents one after the other, each with its end token), `lengths.npy` (tokens of each
document) and `masked.npy` (leading tokens of each that carry no loss: the prompt of an instruction, nothing of a text). It is written aside and
renamed, and found again by the next run: a kill costs the files that were being tokenised.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput
from train.data.blocks import Tokens, kind_for
from train.data.corpus.build import read_rows
from train.data.processes import Workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 64  # documents given to the tokenizer at a time


@dataclass(frozen=True)
class Tokenised:
    """The tokens of one file's documents; the tokens themselves are memory-mapped."""

    tokens: Tokens
    lengths: NDArray[np.int64]
    masked: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> Tokenised:
        return cls(
            np.load(folder / "tokens.npy", mmap_mode="r"),
            np.load(folder / "lengths.npy"),
            np.load(folder / "masked.npy"),
        )

    def documents(self) -> list[Tokens]:
        """The tokens of each document."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1])


Pass = tuple[Tokenised, random.Random]  # a file, and the generator that orders its documents in one epoch


class Encoder:
    """A tokenizer in a form that travels to other processes and needs no transformers there: texts to ids, without special tokens."""

    def __init__(self, definition: str, end: int, vocabulary: int) -> None:
        self.definition, self.end, self.kind = definition, end, kind_for(vocabulary)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """Raises BadInput for the few tokenizers that the tokenizers library does not run."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise BadInput(
                f"model: its tokenizer ({type(tokenizer).__name__}) is not one of the tokenizers library; save it as tokenizer.json"
            )
        assert isinstance(tokenizer.eos_token_id, int)
        return cls(backend.to_str(), tokenizer.eos_token_id, len(tokenizer))

    def load(self) -> Callable[[list[str]], list[Tokens]]:
        """The function that encodes, of arrays of `kind`. Documents are neither cut nor padded."""
        from train.data.words import encoder  # the tokenizers library

        return encoder(self.definition, self.kind)


_encoder: tuple[Encoder, Callable[[list[str]], list[Tokens]]] | None = None  # of this process


def begin(encoder: Encoder) -> None:
    """Readies a process to tokenise. Each has one thread: the processes are the parallelism."""
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = encoder, encoder.load()


def tokenise(task: tuple[Path, Path]) -> Path:
    """Tokenises a file of `text` rows, or of `prompt` and `output` rows, into a folder, unless it is there already."""
    source, folder = task
    if folder.exists():
        return folder
    assert _encoder is not None
    encoder, encode = _encoder
    end: Tokens = np.array([encoder.end], encoder.kind)
    pieces: list[Tokens] = []
    masked: list[int] = []
    for rows in batched(read_rows(source), AT_ONCE):
        if "text" in rows[0]:
            prompts = [end[:0]] * len(rows)
            texts = encode([row["text"] for row in rows])
        else:
            prompts = encode([row["prompt"] for row in rows])
            texts = encode([" " + row["output"] for row in rows])
        masked += map(len, prompts)
        pieces += (np.concatenate([prompt, text, end]) for prompt, text in zip(prompts, texts, strict=True))
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    aside.mkdir(parents=True, exist_ok=True)
    np.save(aside / "tokens.npy", np.concatenate(pieces) if pieces else np.empty(0, encoder.kind))
    np.save(aside / "lengths.npy", np.array([len(piece) for piece in pieces], np.int64))
    np.save(aside / "masked.npy", np.array(masked, np.int64))
    try:
        os.rename(aside, folder)
    except OSError:  # the same file was wanted twice at the same time
        shutil.rmtree(aside)
    return folder


def passes(
    files: Sequence[Path], seed: str, workers: Workers, work: Path, epochs: int | None = None, ahead: int | None = None
) -> Iterator[Pass]:
    """The tokens of each file, epoch after epoch (None: for ever), each with the generator that orders its documents; the files in an order by epoch.

    `work`: where the tokens are kept. Every file is tokenised once, when it is first wanted.
    """

    def wanted() -> Iterator[tuple[int, int]]:
        for epoch in itertools.count() if epochs is None else range(epochs):
            places = list(range(len(files)))
            if len(files) > 1:
                random.Random(f"{seed}:{epoch}:files").shuffle(places)
            yield from ((epoch, place) for place in places)

    named, ordered = itertools.tee(wanted())
    tasks = ((files[place], work / f"{files[place].parent.name}.{files[place].stem}") for _, place in named)
    for (epoch, place), folder in zip(ordered, workers.map(tokenise, tasks, ahead), strict=False):
        yield Tokenised.open(folder), random.Random(f"{seed}:{epoch}:{place}" if len(files) > 1 else f"{seed}:{epoch}")


def stream(read: Iterable[Pass]) -> Iterator[Tokens]:
    """The documents of each file in a random order, as one piece a file."""
    for file, rng in read:
        documents = file.documents()
        rng.shuffle(documents)
        if documents:
            yield np.concatenate(documents)


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
