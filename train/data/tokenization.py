"""Text files -> tokens on disk, each file once, by several processes; and the tokens as a stream in a seeded order.

The tokens of a file are a folder:

tokens.npy    all documents in sequence, each with its end token, and with BOS before it if the tokenizer itself puts
              one there, as it does when the model is scored
lengths.npy   tokens of each document
answers.npy   for instructions: which tokens carry the loss (those of answers and the end tokens); empty for running
              text, where all do
control.json  counts of control tokens that are written in the text, if there are any
counts.json   counts of conversations, which a template has put its own tokens around

The folder is written under another name and renamed. The next run finds it: a kill costs only the files that were being
tokenised.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput
from common.files import write_json
from common.processes import Workers
from common.special_tokens import added_special_tokens, control_tokens
from train.data.blocks import Tokens, dtype_for
from train.data.corpus.documents import read_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from train.data.chat_template import Masking

CONTROL, COUNTS = "control.json", "counts.json"
BATCH_SIZE = 64  # documents given to the tokenizer at a time
VERIFIED = 8  # documents at the beginning of each file whose tokens are compared with the tokenizers library's


@dataclass(frozen=True)
class Tokenised:
    """The tokens of one file's documents, memory-mapped."""

    tokens: Tokens
    lengths: NDArray[np.int64]
    answers: NDArray[np.bool_]  # one value per token of instructions; empty for running text
    control: Mapping[str, int]  # counts of control tokens that are written in the text, by their names
    counts: Mapping[str, int] = field(default_factory=dict)  # of conversations; see train.data.chat_template

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
    """Read a file of counts; return none if there is no file."""
    counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return counts


class FileEpoch(NamedTuple):
    """A file in one epoch."""

    file: Tokenised
    rng: random.Random  # orders its documents
    is_first: bool  # whether this is the first epoch


def read_epochs(
    files: Sequence[Path], seed: str, workers: Workers, work: Path, epochs: int | None = None, ahead: int | None = None
) -> Iterator[FileEpoch]:
    """Yield the tokens of each file in each epoch (None: forever).

    Each epoch has another order of files. A file is tokenised once, when it is first needed, into the folder `work`.
    """

    def order() -> Iterator[tuple[int, int]]:
        for epoch in itertools.count() if epochs is None else range(epochs):
            numbers = list(range(len(files)))
            if len(files) > 1:
                random.Random(f"{seed}:{epoch}:files").shuffle(numbers)
            yield from ((epoch, number) for number in numbers)

    for_tasks, for_results = itertools.tee(order())
    tasks = ((files[number], work / f"{files[number].parent.name}.{files[number].stem}") for _, number in for_tasks)
    for (epoch, number), folder in zip(for_results, workers.map(tokenise, tasks, ahead), strict=False):
        file_seed = f"{seed}:{epoch}:{number}" if len(files) > 1 else f"{seed}:{epoch}"
        yield FileEpoch(Tokenised.open(folder), random.Random(file_seed), epoch == 0)


def stream_documents(read: Iterable[FileEpoch]) -> Iterator[Tokens]:
    """Yield each file as one array, with its documents in a random order."""
    for file, rng, _ in read:
        documents = file.documents()
        rng.shuffle(documents)
        if documents:
            yield np.concatenate(documents)


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


# --- Tokenising a file ---


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
        """Build it from a tokenizer of transformers. document_end: the token that ends a document; None: eos.

        Raises BadInput for the few tokenizers that the tokenizers library does not run, and for a document_end that the
        tokenizer does not have.
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
        before, _ = added_special_tokens(tokenizer)  # we put the end token, so what it puts after a text is left out
        return cls(backend.to_str(), end, len(tokenizer), tuple(before), masking)

    @property
    def dtype(self) -> type:
        """Return the type of its ids on disk: uint16 or uint32."""
        return dtype_for(self.vocabulary)

    def load(self) -> TextEncoder:
        """Return an encoder: texts to arrays of `dtype`, without special tokens."""
        return TextEncoder(self.definition, self.dtype)


_tokenizer: tuple[TokenizerFile, TextEncoder] | None = None  # of this process


def init_worker(tokenizer: TokenizerFile) -> None:
    """Prepare a process to tokenise. Each has one thread: the processes are the parallelism."""
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = tokenizer, tokenizer.load()


def tokenise(task: tuple[Path, Path]) -> Path:
    """Tokenise a file of `text` rows, or of instructions, into a folder, unless it exists; return the folder."""
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
    staging = folder.with_name(f"{folder.name}.{os.getpid()}")
    staging.mkdir(parents=True, exist_ok=True)
    np.save(staging / "tokens.npy", np.concatenate(pieces) if pieces else np.empty(0, tokenizer.dtype))
    np.save(staging / "lengths.npy", np.array(lengths, np.int64))
    np.save(staging / "answers.npy", np.concatenate(answers) if answers else np.empty(0, np.bool_))
    for name, counted in ((CONTROL, control), (COUNTS, counts)):
        if counted:
            write_json(staging / name, counted)
    try:
        os.rename(staging, folder)
    except OSError:  # another process tokenised the same file
        shutil.rmtree(staging)
    return folder


def encode_plain(
    rows: Sequence[Mapping[str, Any]], tokenizer: TokenizerFile, encoder: TextEncoder
) -> tuple[list[Tokens], list[int], list[NDArray[np.bool_]], Counter[str]]:
    """Encode rows of text, or of prompts and answers without a template.

    Returns arrays of tokens in sequence, the tokens of each row, for each array of instructions which tokens carry the
    loss, and counts of control tokens.
    """
    encode = encoder.verified([text for row in rows[:VERIFIED] for text, _ in texts_of(row)])
    before: Tokens = np.array(tokenizer.before, tokenizer.dtype)
    end: Tokens = np.array([tokenizer.end], tokenizer.dtype)
    pieces: list[Tokens] = []
    lengths: list[int] = []
    answers: list[NDArray[np.bool_]] = []
    control: Counter[str] = Counter()
    for batch in batched(rows, BATCH_SIZE):
        encoded = encode([text for row in batch for text, _ in texts_of(row)])
        control.update(encoder.control_names(encoded))
        ids_of_texts = iter(encoded)
        for row in batch:
            parts = [(before, False), *((next(ids_of_texts), loss) for _, loss in texts_of(row)), (end, True)]
            pieces += (ids for ids, _ in parts)
            lengths.append(sum(len(ids) for ids, _ in parts))
            if "text" not in row:
                answers += (np.full(len(ids), loss) for ids, loss in parts)
    return pieces, lengths, answers, control


def texts_of(row: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return the texts of a row, each of which is tokenised alone, and whether it carries the loss.

    A row with messages is tokenised by a template instead (train/data/chat_template.py); its texts are for searches.
    """
    if "text" in row:
        return [(row["text"], True)]
    if "messages" in row:
        return [(message["content"] + "\n", message["role"] == "assistant") for message in row["messages"]]
    turns = [row, *row.get("more", ())]
    return [part for turn in turns for part in ((turn["prompt"], False), (" " + turn["output"], True))]


# --- Encoding texts word by word ---
#
# Looking up words that were encoded before is several times as fast as encoding whole texts, and gives the same ids if
# the tokenizer's merges never cross a single space between two other characters. That is so for byte-pair encoding
# after GPT-2's splitting into words (ByteLevel, with or without Digits), and on whole texts if no token contains a
# space behind another character (SentencePiece's, Llama 2's). `is_word_local` knows these tokenizers. Texts of others,
# and texts with an added token, are encoded whole by the tokenizers library. `TextEncoder.verified` compares the first
# texts of every file with the library.

Encode = Callable[[Sequence[str]], list[Tokens]]

CACHE_BYTES = 1 << 26  # of cached words and their ids: about 300,000
ENTRY_BYTES = 100  # of an entry in a dict (about)
BOUNDARY = re.compile(r"(?<=\S) (?=\S)")
SPACE = "▁"  # a space in the tokens of SentencePiece
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
GPT2: dict[str, dict[str, Any]] = {"ByteLevel": {"use_regex": True}, "Digits": {}}
NO_PREFIX: dict[str, dict[str, Any]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}
PLAIN_BPE = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}
NOT_WORD_LOCAL = (
    "word by word, this tokenizer gives other ids than the tokenizers library does;"
    " texts are encoded whole, which is slower and right. Please report the tokenizer"
)


class TextEncoder:
    """Texts to ids without special tokens, by the text of a tokenizer.json. Texts are neither cut nor padded."""

    def __init__(self, definition: str, dtype: type[np.unsignedinteger[Any]]) -> None:
        self.library, self.dtype = load_library(definition), dtype
        settings = json.loads(definition)
        self.control = control_tokens(settings)
        self.is_control = np.zeros(max(self.control, default=0) + 1, np.bool_)
        self.is_control[list(self.control)] = True
        self.words = WordCache(self.library, settings, dtype) if is_word_local(settings) else None

    def encode_whole(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the ids of each text, encoded whole by the library."""
        encodings = self.library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def encode_words(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the ids of each text, word by word if the tokenizer and the text allow it."""
        words = self.words
        if words is None:
            return self.encode_whole(texts)
        return [ids if (ids := words.encode(text)) is not None else self.encode_whole([text])[0] for text in texts]

    def verified(self, sample: Sequence[str]) -> Encode:
        """Return `encode_words` if it gives the library's ids for a sample of a file's texts.

        Otherwise warn, once per process, and return `encode_whole`. The sample alone decides, so that a file's tokens
        do not depend on the process that makes them.
        """
        if self.words is None:
            return self.encode_whole
        pairs = zip(self.encode_words(sample), self.encode_whole(sample), strict=True)
        if all(np.array_equal(by_words, whole) for by_words, whole in pairs):
            return self.encode_words
        warnings.warn(NOT_WORD_LOCAL, RuntimeWarning, stacklevel=2)
        return self.encode_whole

    def control_names(self, encoded: Sequence[Tokens]) -> Iterator[str]:
        """Yield the name of each control token among the ids of texts."""
        ids = np.concatenate(encoded) if encoded else np.empty(0, self.dtype)
        low = ids[ids < len(self.is_control)]
        yield from (self.control[int(number)] for number in low[self.is_control[low]])


class NotCacheable(Exception):
    """A piece of text is not a word: it is empty, ends in white space, or cannot be encoded by itself."""


class WordCache(dict[str, bytes]):
    """The ids of words that follow a space."""

    def __init__(self, library: Tokenizer, settings: dict[str, Any], dtype: type[np.unsignedinteger[Any]]) -> None:
        super().__init__()
        self.library, self.dtype, self.bytes = library, dtype, 0
        self.inside = load_library(json.dumps(without_prefix(settings)))
        added = "".join("|" + re.escape(token["content"]) for token in settings["added_tokens"])
        self.not_cacheable = re.compile(rf"\A\Z|\s\Z|{SPACE}{added}")

    def encode(self, text: str) -> Tokens | None:
        """Return the ids of a text, or None if it has to be encoded whole."""
        with suppress(NotCacheable):
            return self._encode_words(text.split(" "))
        with suppress(NotCacheable):  # wide or leading spaces, ends of lines: a slower split leaves them in the words
            return self._encode_words(BOUNDARY.split(text))
        return None

    def _encode_words(self, words: list[str]) -> Tokens:
        """Return the ids of words with single spaces between them.

        White space may precede the first word, and the tokenizer may put a prefix before it.
        """
        if self.not_cacheable.search(words[0]):
            raise NotCacheable
        first = np.array(self.library.encode(words[0], add_special_tokens=False).ids, self.dtype).tobytes()
        return np.frombuffer(first + b"".join(map(self.__getitem__, words[1:])), self.dtype)

    def __missing__(self, word: str) -> bytes:
        if self.not_cacheable.search(word) or word[0].isspace():
            raise NotCacheable
        if self.bytes > CACHE_BYTES:
            self.clear()
            self.bytes = 0
        ids = self[word] = np.array(self.inside.encode(" " + word, add_special_tokens=False).ids, self.dtype).tobytes()
        self.bytes += sys.getsizeof(word) + sys.getsizeof(ids) + ENTRY_BYTES
        return ids


def load_library(definition: str) -> Tokenizer:
    """Return a tokenizer of the library that neither cuts nor pads."""
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def is_word_local(settings: dict[str, Any]) -> bool:
    """Return whether words can be encoded one by one, by a tokenizer.json's content.

    No merge and no rule crosses a single space within a text.
    """
    model, steps = settings["model"], steps_of(settings["pre_tokenizer"], "pretokenizers")
    if model["type"] != "BPE" or any(model.get(key, plain) not in (plain, "") for key, plain in PLAIN_BPE.items()):
        return False
    if any(re.search(rf"\s|{SPACE}", token["content"]) for token in settings["added_tokens"]):
        return False
    if steps and steps[-1]["type"] == "ByteLevel":  # splits as GPT-2 does: a space is only ever the first of a word
        return not settings["normalizer"] and all(
            GPT2.get(step["type"], {"": None}).items() <= step.items() for step in steps
        )
    normal = steps_of(settings["normalizer"], "normalizers")
    if any(step not in (PREPEND, REPLACE) for step in normal) or any(
        step["type"] != "Metaspace" or step["replacement"] != SPACE for step in steps
    ):
        return False
    if REPLACE not in normal and not steps:  # spaces stay as they are
        return False
    return SPACE in model["vocab"] and not any(re.search(rf"[^{SPACE}]{SPACE}", token) for token in model["vocab"])


def without_prefix(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json's content that puts no space before a text."""
    normal = [step for step in steps_of(settings["normalizer"], "normalizers") if step["type"] != "Prepend"]
    split = [dict(step) for step in steps_of(settings["pre_tokenizer"], "pretokenizers")]
    for step in split:
        step |= NO_PREFIX.get(step["type"], {})
    changed = {
        "normalizer": {"type": "Sequence", "normalizers": normal},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
    }
    return {**settings, **{key: value if next(iter(value.values())) else None for key, value in changed.items()}}


def steps_of(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer: one, none, or a sequence that is listed under `name`."""
    if step is None:
        return []
    return list(step[name]) if step["type"] == "Sequence" else [step]
