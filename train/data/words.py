"""Texts to token ids word by word, each word looked up once encoded.

That is several times as fast as encoding texts whole, and return the same ids.

That holds for tokenizers whose merges never cross a single space between two other characters: byte-pair encoding after
GPT-2's splitting into words (ByteLevel, with or without Digits), or on whole texts with no token that holds a space
behind another character (SentencePiece's, Llama 2's). `is_word_local` knows them; the others, and texts with an added token,
are encoded whole by the tokenizers library. What `is_word_local` claims is checked: `checked` holds the first texts of every
file against the library.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from common.special_tokens import control_tokens
from train.data.blocks import Tokens

Encode = Callable[[Sequence[str]], list[Tokens]]

CACHE_BYTES = 1 << 26  # of words and their ids that are remembered at a time: about 300,000
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
NOT_WORD_LOCAL = (
    "word by word, this tokenizer gives other ids than the tokenizers library does;"
    " texts are encoded whole, which is slower and right. Please report the tokenizer"
)
PLAIN_BPE = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}


class TextEncoder:
    """Texts to ids without special tokens, by a tokenizer.json's text. Texts are neither cut nor padded."""

    def __init__(self, definition: str, dtype: type[np.unsignedinteger[Any]]) -> None:
        self.library, self.dtype = load_library(definition), dtype
        settings = json.loads(definition)
        self.control = control_tokens(settings)
        self.is_control = np.zeros(max(self.control, default=0) + 1, np.bool_)
        self.is_control[list(self.control)] = True
        self.words = WordCache(self.library, settings, dtype) if is_word_local(settings) else None

    def whole(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the ids of each text, encoded whole by the library."""
        encodings = self.library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def control_in(self, encoded: Sequence[Tokens]) -> Iterator[str]:
        """Yield the names of control tokens among the ids of texts, as often as they are there."""
        ids = np.concatenate(encoded) if encoded else np.empty(0, self.dtype)
        low = ids[ids < len(self.is_control)]
        yield from (self.control[int(number)] for number in low[self.is_control[low]])

    def by_words(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the ids of each text, word by word where the tokenizer and the text allow it."""
        words = self.words
        if words is None:
            return self.whole(texts)
        return [ids if (ids := words.ids(text)) is not None else self.whole([text])[0] for text in texts]

    def checked(self, sample: Sequence[str]) -> Encode:
        """Return the faster way if it gives the library's ids for a sample of a file's texts.

        Else whole texts, and a warning, once a process.

        It depends on the sample alone, so that a file's tokens do not depend on which process makes them.
        """
        if self.words is None:
            return self.whole
        pairs = zip(self.by_words(sample), self.whole(sample), strict=True)
        if all(np.array_equal(ours, theirs) for ours, theirs in pairs):
            return self.by_words
        warnings.warn(NOT_WORD_LOCAL, RuntimeWarning, stacklevel=2)
        return self.whole


class NotCacheable(Exception):
    """A piece of text that is not a word.

    It is empty, has white space at an end, or cannot be encoded by itself.
    """


class WordCache(dict[str, bytes]):
    """The ids of words after a space."""

    def __init__(self, library: Tokenizer, settings: dict[str, Any], dtype: type[np.unsignedinteger[Any]]) -> None:
        super().__init__()
        self.library, self.dtype, self.bytes = library, dtype, 0
        self.inside = load_library(json.dumps(without_prefix(settings)))
        added = "".join("|" + re.escape(token["content"]) for token in settings["added_tokens"])
        self.uneven = re.compile(rf"\A\Z|\s\Z|{SPACE}{added}")

    def ids(self, text: str) -> Tokens | None:
        """Return the ids of a text, or None if it has to be encoded whole."""
        with suppress(NotCacheable):
            return self.joined(text.split(" "))
        with suppress(NotCacheable):  # wide or leading spaces, ends of lines: a slower split, that leaves them in the words
            return self.joined(BOUNDARY.split(text))
        return None

    def joined(self, words: list[str]) -> Tokens:
        """Return the ids of words with a space between each two.

        Before the first there may be white space, and the tokenizer may put a prefix.
        """
        if self.uneven.search(words[0]):
            raise NotCacheable
        first = np.array(self.library.encode(words[0], add_special_tokens=False).ids, self.dtype).tobytes()
        return np.frombuffer(first + b"".join(map(self.__getitem__, words[1:])), self.dtype)

    def __missing__(self, word: str) -> bytes:
        if self.uneven.search(word) or word[0].isspace():
            raise NotCacheable
        if self.bytes > CACHE_BYTES:
            self.clear()
            self.bytes = 0
        ids = self[word] = np.array(self.inside.encode(" " + word, add_special_tokens=False).ids, self.dtype).tobytes()
        self.bytes += sys.getsizeof(word) + sys.getsizeof(ids) + ENTRY_BYTES
        return ids


def load_library(definition: str) -> Tokenizer:
    """Return a tokenizer that neither cuts nor pads."""
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
    """Return the steps of a normalizer or pre-tokenizer, be it one, a sequence of them (listed under `name`), or
    none.
    """
    if step is None:
        return []
    return list(step[name]) if step["type"] == "Sequence" else [step]
