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

from common import files
from train.data import tokenization
from train.data.tokenization import SPACE, TextEncoder, WordCache, is_word_local, load_library

ROOT = Path(__file__).parents[3]
TEXT = [
    "the cat's 12 mice -- don't eat, it's 3.14 (or 2,000)!", "Pachiyambi Mulungu analenga kumwamba ndi dziko",
    "བོད་ཡིག་ གི་ ཡི་གེ།",
    "கடவுள் உலகம்", "  two spaces   three    four", "line\nline\n\nparagraph \n end",
    "ᠮᠣᠩᠭᠣᠯ\u180eᠠ", "e\u0301te\u0301 été",
]  # fmt: skip
PIECES = [
    " ", " ", " ", "  ", "\n", "\t", "\u00a0", "\u2003", "\u180e", "\u200b", "\x1c", "\x85", "\r\n",
    "a", "the", "cat", "'s", "'", "I'll", "1", "23", "x1", "-", "...",
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
    """As Llama 2's: no pre-tokenizer, spaces made visible by the normalizer, bytes for what has no token."""
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
def made(name: str) -> tuple[Tokenizer, WordCache]:
    settings = LOCAL[name]()
    assert is_word_local(settings)
    whole = load_library(json.dumps(settings))
    return whole, WordCache(whole, settings, np.uint32)


@pytest.mark.parametrize("name", LOCAL)
@given(text=st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=20))
def test_the_ids_are_the_librarys(name: str, text: str) -> None:
    whole, ours = made(name)
    ids = ours.encode(text)
    if ids is not None:
        assert ids.tolist() == whole.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", LOCAL)
def test_plain_texts_are_split_and_the_rest_is_encoded_whole(name: str) -> None:
    whole, ours = made(name)
    splitting = [*TEXT, " ".join(TEXT), " an answer", "\n line"]
    texts = [*splitting, "", "an <|end|> inside", f"a{SPACE} b", "space behind ", "line behind\n"]
    split = [ours.encode(text) is not None for text in texts]
    assert split == [True] * len(splitting) + [False] * 5
    encoded = TextEncoder(json.dumps(LOCAL[name]()), np.uint32).encode_words(texts)
    assert [ids.tolist() for ids in encoded] == [whole.encode(text, add_special_tokens=False).ids for text in texts]


def test_a_full_memory_of_words_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "CACHE_BYTES", 1000)
    whole = load_library(json.dumps(tiny_base()))
    ours = WordCache(whole, tiny_base(), np.uint16)
    for text in TEXT * 2:
        ids = ours.encode(text)
        assert ids is None or ids.tolist() == whole.encode(text, add_special_tokens=False).ids
    assert 0 < len(ours) < len(set(" ".join(TEXT).split()))


def crossing() -> dict[str, Any]:
    made = sentencepiece()
    made["model"]["vocab"][f"of{SPACE}the"] = 5000
    return made


def spanning() -> dict[str, Any]:
    """Byte-level pieces that are not split into words, with a merge across a space: `of the` is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["of the"] * 9, trainer)
    made: dict[str, Any] = json.loads(tokenizer.to_str())
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
    assert not is_word_local(NOT_LOCAL[why]())


@pytest.mark.parametrize("name", LOCAL)
def test_what_agrees_with_the_library_is_encoded_by_words(name: str) -> None:
    encoder = TextEncoder(json.dumps(LOCAL[name]()), np.uint32)
    assert encoder.verified(TEXT) == encoder.encode_words and encoder.verified([]) == encoder.encode_words


def test_a_tokenizer_that_was_admitted_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "is_word_local", lambda settings: True)
    encoder = TextEncoder(json.dumps(spanning()), np.uint32)
    texts = ["of the people", "nothing that spans"]
    right = [encoder.library.encode(text, add_special_tokens=False).ids for text in texts]
    assert encoder.encode_words(texts)[0].tolist() != right[0]
    with pytest.warns(RuntimeWarning, match="texts are encoded whole"):
        encode = encoder.verified(texts)
    assert [ids.tolist() for ids in encode(texts)] == right


def test_each_file_is_judged_by_its_first_documents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tokens of a file are the same whichever files its process has seen before."""
    monkeypatch.setattr(tokenization, "is_word_local", lambda settings: True)
    files.write_jsonl(tmp_path / "plain.jsonl", [{"text": "nothing that spans"}])
    files.write_jsonl(tmp_path / "spanning.jsonl", [{"text": "of the people"}])
    definition = json.dumps(spanning())
    tokenization.init_worker(tokenization.TokenizerFile(definition, end=0, vocabulary=70_000))
    whole = load_library(definition)

    def tokens(name: str) -> list[int]:
        folder = tokenization.tokenise((tmp_path / f"{name}.jsonl", tmp_path / name))
        return tokenization.Tokenised.open(folder).tokens.tolist()

    with pytest.warns(RuntimeWarning, match="texts are encoded whole"):
        spanned = tokens("spanning")
    assert spanned == [*whole.encode("of the people", add_special_tokens=False).ids, 0]
    assert tokens("plain") == [*whole.encode("nothing that spans", add_special_tokens=False).ids, 0]
