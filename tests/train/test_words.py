"""Word by word gives the ids that the tokenizers library gives: tried on texts made of what is hard to split."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from train.data import words
from train.data.words import SPACE, Words, encoder, loaded, local

ROOT = Path(__file__).parents[2]
TEXT = [
    "the cat's 12 mice -- don't eat, it's 3.14 (or 2,000)!", "Pachiyambi Mulungu analenga kumwamba ndi dziko", "བོད་ཡིག་ གི་ ཡི་གེ།",
    "கடவுள் உலகம்", "  two spaces   three    four", "line\nline\n\nparagraph \n end", "ᠮᠣᠩᠭᠣᠯ\u180eᠠ", "e\u0301te\u0301 été",
]  # fmt: skip
PIECES = [
    " ", " ", " ", "  ", "\n", "\t", "\u00a0", "\u2003", "\u180e", "\u200b", "\x1c", "\x85", "\r\n", "a", "the", "cat", "'s", "'", "I'll", "1", "23", "x1", "-", "...",
    SPACE, "Ġ", "<|end|>", "<|", "கடவுள்", "བོད་", "é", "e\u0301", "\u0301", "\U0001f600", "\u200d", "ſ", "K", "",
]  # fmt: skip


def trained(pre: Any, **model: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    byte_level = not isinstance(pre, pre_tokenizers.Metaspace)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    tokenizer.train_from_iterator(
        TEXT * 3, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<|end|>"])
    made: dict[str, Any] = json.loads(tokenizer.to_str())
    made["model"].update(model)
    return made


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """As Llama 2's: no pre-tokenizer, spaces made visible by the normalizer, bytes for what is not in the vocabulary."""
    made = trained(
        pre_tokenizers.Metaspace(prepend_scheme="first"), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    vocabulary = made["model"]["vocab"]
    for token in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]:
        vocabulary[token] = 1000 + len(vocabulary)
    visible = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    bare = Tokenizer(models.BPE())
    bare.normalizer = visible
    made.update({"pre_tokenizer": None, "normalizer": json.loads(bare.to_str())["normalizer"], **changes})
    return made


def metaspace(scheme: str, split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


def tiny_base() -> dict[str, Any]:
    made: dict[str, Any] = json.loads((ROOT / "models" / "tiny-base" / "tokenizer.json").read_text())
    return made


def digits() -> dict[str, Any]:
    return trained(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    )


LOCAL: dict[str, Callable[[], dict[str, Any]]] = {
    "tiny-base": tiny_base,
    "prefix": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "digits": digits,
    "sentencepiece": sentencepiece,
    "metaspace": lambda: sentencepiece(normalizer=None, pre_tokenizer=metaspace("first", False)),
    "metaspace-split": lambda: sentencepiece(normalizer=None, pre_tokenizer=metaspace("always", True)),
}


@cache
def made(name: str) -> tuple[Tokenizer, Words]:
    settings = LOCAL[name]()
    assert local(settings)
    whole = loaded(json.dumps(settings))
    return whole, Words(whole, settings, np.uint32)


@pytest.mark.parametrize("name", LOCAL)
@given(text=st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=20))
def test_the_ids_are_the_librarys(name: str, text: str) -> None:
    whole, ours = made(name)
    found = ours.ids(text)
    if found is not None:
        assert found.tolist() == whole.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", LOCAL)
def test_plain_texts_are_split_and_the_rest_is_encoded_whole(name: str) -> None:
    whole, ours = made(name)
    splitting = [*TEXT, " ".join(TEXT), " an answer", "\n line"]
    texts = [*splitting, "", "an <|end|> inside", f"a{SPACE} b", "space behind ", "line behind\n"]
    split = [ours.ids(text) is not None for text in texts]
    assert split == [True] * len(splitting) + [False] * 5
    encoded = encoder(json.dumps(LOCAL[name]()), np.uint32)(texts)
    assert [ids.tolist() for ids in encoded] == [whole.encode(text, add_special_tokens=False).ids for text in texts]


def test_a_full_memory_of_words_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "HELD", 1000)
    whole = loaded(json.dumps(tiny_base()))
    ours = Words(whole, tiny_base(), np.uint16)
    for text in TEXT * 2:
        found = ours.ids(text)
        assert found is None or found.tolist() == whole.encode(text, add_special_tokens=False).ids
    assert 0 < len(ours) < len(set(" ".join(TEXT).split()))


def crossing() -> dict[str, Any]:
    made = sentencepiece()
    made["model"]["vocab"][f"of{SPACE}the"] = 5000
    return made


def with_added(content: str) -> dict[str, Any]:
    made = tiny_base()
    made["added_tokens"].append({**made["added_tokens"][0], "id": 4000, "content": content})
    return made


NOT_LOCAL: dict[str, Callable[[], dict[str, Any]]] = {
    "a token across a space": crossing,
    "an added token with a space": lambda: with_added("New York"),
    "spaces that stay spaces": lambda: sentencepiece(normalizer=None),
    "dropout": lambda: trained(pre_tokenizers.ByteLevel(), dropout=0.1),
    "whole words first": lambda: trained(pre_tokenizers.ByteLevel(), ignore_merges=True),
    "a suffix at the end of words": lambda: trained(pre_tokenizers.ByteLevel(), end_of_word_suffix="</w>"),
    "a splitting rule of its own": lambda: trained(
        pre_tokenizers.Sequence([pre_tokenizers.Split(",", "isolated"), pre_tokenizers.ByteLevel()])
    ),
    "bytes without splitting": lambda: trained(pre_tokenizers.ByteLevel(use_regex=False)),
    "no splitting at all": lambda: {**tiny_base(), "pre_tokenizer": None},
    "a normalizer": lambda: {**tiny_base(), "normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
    "another model": lambda: {**tiny_base(), "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
}


@pytest.mark.parametrize("why", NOT_LOCAL)
def test_other_tokenizers_encode_whole_texts(why: str) -> None:
    assert not local(NOT_LOCAL[why]())
