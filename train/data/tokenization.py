"""Text files -> tokens on disk, each file once, by several processes; and the tokens as a stream in a seeded order.

What is made of a file is a folder with `tokens.npy` (all documents one after the other, each with its end token),
`lengths.npy` (tokens of each document) and `masked.npy` (leading tokens of each that carry no loss: the prompt of an
instruction, nothing of a text). It is written aside and renamed, and found again by the next run: a kill costs the
files that were being tokenised.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput
from train.data.blocks import Tokens, dtype_for
from train.data.corpus.documents import read_rows
from train.data.processes import Workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from train.data.words import TextEncoder

AT_ONCE = 64  # documents given to the tokenizer at a time
CHECKED = 8  # documents at the beginning of each file whose tokens are held against the tokenizers library's


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


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer in a form that travels to other processes and needs no transformers there."""

    definition: str  # the text of its tokenizer.json
    end: int  # id of the token that ends a document
    vocabulary: int  # number of its tokens

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenizerFile:
        """Raises BadInput for the few tokenizers that the tokenizers library does not run."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise BadInput(
                f"model: its tokenizer ({type(tokenizer).__name__}) is not one of the tokenizers library;"
                " save it as tokenizer.json"
            )
        assert isinstance(tokenizer.eos_token_id, int)
        return cls(backend.to_str(), tokenizer.eos_token_id, len(tokenizer))

    @property
    def dtype(self) -> type:
        """The type of its ids on disk: uint16 or uint32."""
        return dtype_for(self.vocabulary)

    def load(self) -> TextEncoder:
        """What encodes: texts to arrays of `dtype`, without special tokens."""
        from train.data.words import TextEncoder  # the tokenizers library

        return TextEncoder(self.definition, self.dtype)


_tokenizer: tuple[TokenizerFile, TextEncoder] | None = None  # of this process


def init_worker(tokenizer: TokenizerFile) -> None:
    """Readies a process to tokenise. Each has one thread: the processes are the parallelism."""
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = tokenizer, tokenizer.load()


def tokenise(task: tuple[Path, Path]) -> Path:
    """Tokenises a file of `text` rows, or of `prompt` and `output` rows, into a folder, unless it is there already."""
    source, folder = task
    if folder.exists():
        return folder
    assert _tokenizer is not None
    tokenizer, encoder = _tokenizer
    rows = read_rows(source)
    prompts, texts = pair(rows)
    encode = encoder.checked([*prompts[:CHECKED], *texts[:CHECKED]])
    end: Tokens = np.array([tokenizer.end], tokenizer.dtype)
    pieces: list[Tokens] = []
    masked: list[int] = []
    for start in range(0, len(rows), AT_ONCE):
        stop = start + AT_ONCE
        encoded = encode(texts[start:stop])
        questions = encode(prompts[start:stop]) if prompts else [end[:0]] * len(encoded)
        masked += map(len, questions)
        pieces += (np.concatenate([question, text, end]) for question, text in zip(questions, encoded, strict=True))
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    aside.mkdir(parents=True, exist_ok=True)
    np.save(aside / "tokens.npy", np.concatenate(pieces) if pieces else np.empty(0, tokenizer.dtype))
    np.save(aside / "lengths.npy", np.array([len(piece) for piece in pieces], np.int64))
    np.save(aside / "masked.npy", np.array(masked, np.int64))
    try:
        os.rename(aside, folder)
    except OSError:  # the same file was wanted twice at the same time
        shutil.rmtree(aside)
    return folder


def pair(rows: Sequence[dict[str, str]]) -> tuple[list[str], list[str]]:
    """The prompts of rows, none where they are running text, and the texts that are trained on."""
    if rows and "text" not in rows[0]:
        return [row["prompt"] for row in rows], [" " + row["output"] for row in rows]
    return [], [row["text"] for row in rows]


def passes(
    files: Sequence[Path], seed: str, workers: Workers, work: Path, epochs: int | None = None, ahead: int | None = None
) -> Iterator[Pass]:
    """The tokens of each file, epoch after epoch (None: for ever), each with the generator that orders its documents.

    The order of the files is another in each epoch. `work`: where the tokens are kept. Every file is tokenised once,
    when it is first wanted.
    """

    def wanted() -> Iterator[tuple[int, int]]:
        for epoch in itertools.count() if epochs is None else range(epochs):
            numbers = list(range(len(files)))
            if len(files) > 1:
                random.Random(f"{seed}:{epoch}:files").shuffle(numbers)
            yield from ((epoch, number) for number in numbers)

    named, ordered = itertools.tee(wanted())
    tasks = ((files[number], work / f"{files[number].parent.name}.{files[number].stem}") for _, number in named)
    for (epoch, number), folder in zip(ordered, workers.map(tokenise, tasks, ahead), strict=False):
        seeded = f"{seed}:{epoch}:{number}" if len(files) > 1 else f"{seed}:{epoch}"
        yield Tokenised.open(folder), random.Random(seeded)


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
