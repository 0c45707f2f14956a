"""Text files -> tokens on disk, each file once, by several processes; and the tokens as a stream in a seeded order.

What is made of a file is a folder with `tokens.npy` (all documents one after the other, each with its end token, and
with BOS before it if the tokenizer itself puts one there, as it does when the model is scored), `lengths.npy` (tokens
of each document) and `answers.npy` (of instructions, which tokens carry the loss: those of answers and the end tokens;
empty of running text, which carries it throughout). `control.json` is there where control tokens are written in the
text, and `counts.json` of conversations, which a template has put its own tokens around. The folder is written aside
and renamed, and found again by the next run: a kill costs the files that were being tokenised.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput
from common.files import write_json
from common.special_tokens import added_special_tokens
from train.data.blocks import Tokens, dtype_for
from train.data.corpus.documents import read_rows
from train.data.processes import Workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from train.data.chat.masking import Masking
    from train.data.words import TextEncoder

CONTROL, COUNTS = "control.json", "counts.json"
BATCH_SIZE = 64  # documents given to the tokenizer at a time
VERIFIED = 8  # documents at the beginning of each file whose tokens are compared with the tokenizers library's


@dataclass(frozen=True)
class Tokenised:
    """The tokens of one file's documents, memory-mapped.

    control: how often control tokens are written in them, by their names.
    """

    tokens: Tokens
    lengths: NDArray[np.int64]
    answers: NDArray[np.bool_]  # one value per token of instructions; empty of running text
    control: Mapping[str, int]
    counts: Mapping[str, int] = field(default_factory=dict)  # of conversations; see train.data.chat.masking

    @classmethod
    def open(cls, folder: Path) -> Tokenised:
        return cls(
            np.load(folder / "tokens.npy", mmap_mode="r"),
            np.load(folder / "lengths.npy"),
            np.load(folder / "answers.npy", mmap_mode="r"),
            *(read_counts(folder / name) for name in (CONTROL, COUNTS)),
        )

    def documents(self) -> list[Tokens]:
        """Return the tokens of each document."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []

    def examples(self) -> list[tuple[Tokens, NDArray[np.bool_]]]:
        """Return the tokens of each instruction, and which of them carry the loss."""
        answers = np.split(self.answers, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []
        return list(zip(self.documents(), answers, strict=True))


def read_counts(path: Path) -> dict[str, int]:
    """Read a file of counts; empty if nothing was counted."""
    counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return counts


FileEpoch = tuple[Tokenised, random.Random]  # a file, and the generator that orders its documents in one epoch


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that can be sent to other processes, which need no transformers for it."""

    definition: str  # the text of its tokenizer.json
    end: int  # id of the token that ends a document
    vocabulary: int  # number of its tokens
    before: tuple[int, ...] = ()  # ids that it puts before every text, such as BOS
    masking: Masking | None = None  # of conversations; None: instructions are prompts and answers as they are

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, masking: Masking | None = None, document_end: str | None = None
    ) -> TokenizerFile:
        """Raise BadInput for the few tokenizers that the tokenizers library does not run.

        document_end: the token that ends a document (None: eos); raise BadInput if the tokenizer has no such token.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise BadInput(
                f"model: its tokenizer must be of the tokenizers library, got {type(tokenizer).__name__}."
                " Save it as tokenizer.json."
            )
        end = tokenizer.eos_token_id if document_end is None else backend.token_to_id(document_end)
        if end is None:
            raise BadInput(
                f"ct.document_end: the tokenizer in {tokenizer.name_or_path} has no such token, got {document_end}."
                " Name one of its tokens, or null for the one that ends a text."
            )
        assert isinstance(end, int)
        before, _ = added_special_tokens(tokenizer)  # what it puts after a text is the end token, which is ours to put
        return cls(backend.to_str(), end, len(tokenizer), tuple(before), masking)

    @property
    def dtype(self) -> type:
        """Return the type of its ids on disk: uint16 or uint32."""
        return dtype_for(self.vocabulary)

    def load(self) -> TextEncoder:
        """Return an encoder: texts to arrays of `dtype`, without special tokens."""
        from train.data.words import TextEncoder  # the tokenizers library

        return TextEncoder(self.definition, self.dtype)


_tokenizer: tuple[TokenizerFile, TextEncoder] | None = None  # of this process


def init_worker(tokenizer: TokenizerFile) -> None:
    """Prepare a process to tokenise. Each has one thread: the processes are the parallelism."""
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = tokenizer, tokenizer.load()


def tokenise(task: tuple[Path, Path]) -> Path:
    """Tokenise a file of `text` rows, or of instructions, into a folder, unless it exists."""
    source, folder = task
    if folder.exists():
        return folder
    assert _tokenizer is not None
    tokenizer, encoder = _tokenizer
    rows = read_rows(source)
    counts: Mapping[str, int] = {}
    control: Mapping[str, int] = {}
    if tokenizer.masking and rows and "text" not in rows[0]:
        examples, counts = tokenizer.masking.examples(rows, encoder.library, tokenizer.dtype)
        pieces, answers = [ids for ids, _ in examples], [loss for _, loss in examples]
        lengths = [len(ids) for ids in pieces]
    else:
        pieces, lengths, answers, control = encode_plain(rows, tokenizer, encoder)
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    aside.mkdir(parents=True, exist_ok=True)
    np.save(aside / "tokens.npy", np.concatenate(pieces) if pieces else np.empty(0, tokenizer.dtype))
    np.save(aside / "lengths.npy", np.array(lengths, np.int64))
    np.save(aside / "answers.npy", np.concatenate(answers) if answers else np.empty(0, np.bool_))
    for name, counted in ((CONTROL, control), (COUNTS, counts)):
        if counted:
            write_json(aside / name, counted)
    try:
        os.rename(aside, folder)
    except OSError:  # the same file was wanted twice at the same time
        shutil.rmtree(aside)
    return folder


def encode_plain(
    rows: Sequence[Mapping[str, Any]], tokenizer: TokenizerFile, encoder: TextEncoder
) -> tuple[list[Tokens], list[int], list[NDArray[np.bool_]], Counter[str]]:
    """Return rows of text, or of prompts and answers as they are: pieces, lengths of rows, the loss, and control
    tokens.
    """
    encode = encoder.checked([text for row in rows[:VERIFIED] for text, _ in texts_of(row)])
    before: Tokens = np.array(tokenizer.before, tokenizer.dtype)
    end: Tokens = np.array([tokenizer.end], tokenizer.dtype)
    pieces: list[Tokens] = []
    lengths: list[int] = []
    answers: list[NDArray[np.bool_]] = []
    control: Counter[str] = Counter()
    for some in batched(rows, BATCH_SIZE):
        of_texts = encode([text for row in some for text, _ in texts_of(row)])
        control.update(encoder.control_in(of_texts))
        encoded = iter(of_texts)
        for row in some:
            of_row = [(before, False), *((next(encoded), is_answer) for _, is_answer in texts_of(row)), (end, True)]
            pieces += (ids for ids, _ in of_row)
            lengths.append(sum(len(ids) for ids, _ in of_row))
            if "text" not in row:
                answers += (np.full(len(ids), is_answer) for ids, is_answer in of_row)
    return pieces, lengths, answers, control


def texts_of(row: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return the texts that a row is made of, each tokenised alone, and whether the loss is on it: not on what is
    asked.

    Those of a conversation are for who looks for words in them: a template puts it into tokens (train/data/chat).
    """
    if "text" in row:
        return [(row["text"], True)]
    if "messages" in row:
        return [(message["content"] + "\n", message["role"] == "assistant") for message in row["messages"]]
    turns = [row, *row.get("more", ())]
    return [part for turn in turns for part in ((turn["prompt"], False), (" " + turn["output"], True))]


def read_epochs(
    files: Sequence[Path], seed: str, workers: Workers, work: Path, epochs: int | None = None, ahead: int | None = None
) -> Iterator[FileEpoch]:
    """Yield the tokens of each file, epoch after epoch (None: forever), each with the generator that orders its
    documents.

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


def stream_documents(read: Iterable[FileEpoch]) -> Iterator[Tokens]:
    """Yield the documents of each file in a random order, as one piece a file."""
    for file, rng in read:
        documents = file.documents()
        rng.shuffle(documents)
        if documents:
            yield np.concatenate(documents)


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
