"""The meaning of token ids: whether two folders' tokenizers are equal, however they were saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput, user_errors
from common.validation import read_json


class AddedToken(TypedDict):
    id: int
    content: str


class Model(TypedDict):
    vocab: dict[str, int] | list[tuple[str, float]]  # of Unigram models: pieces in the order of their ids, with scores
    merges: NotRequired[list[str | tuple[str, str]] | None]  # older versions write "a b", newer ones ["a", "b"]


class TokenizerFile(TypedDict):
    """The keys of tokenizer.json that we read."""

    model: Model
    added_tokens: NotRequired[list[AddedToken] | None]


class Tekken(TypedDict):
    """The keys of mistral-common's tekken.json that we read: tokens as bytes in base64, after the control tokens."""

    config: dict[str, Any]
    vocab: list[dict[str, Any]]


_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")


@dataclass(frozen=True)
class Vocabulary:
    """ids of all tokens, including added ones; merges in order, if the tokenizer has any and its file lists them.

    whole: whether the file lists every token (a sentencepiece model lacks those that were added later).
    """

    ids: dict[str, int]
    merges: list[tuple[str, ...]] | None
    whole: bool

    def difference(self, other: Vocabulary) -> str | None:
        """Describe how `other` differs; None if it is equal."""
        if self.whole and other.whole:
            for token, number in self.ids.items():
                if other.ids.get(token) != number:
                    return f"token {token!r} is {other.ids.get(token, 'not there')}, not {number}"
            for token, number in other.ids.items():
                if token not in self.ids:
                    return f"token {token!r} is {number}, not there"
        else:
            names = {number: token for token, number in self.ids.items()}
            for token, number in other.ids.items():
                if names.get(number, token) != token:
                    return f"id {number} is {token!r}, not {names[number]!r}"
        if self.merges is not None and other.merges is not None and self.merges != other.merges:
            return "the merges differ"
        return None


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the vocabulary of a checkpoint folder; None without a tokenizer. Raises BadInput for a damaged file."""
    with user_errors():
        if (folder / "tokenizer.json").is_file():
            return _fast(folder / "tokenizer.json")
        if (folder / "vocab.json").is_file():
            ids: dict[str, int] = read_json(folder / "vocab.json", dict[str, int])
            return Vocabulary(ids | _added(folder), None, True)
        if (folder / "vocab.txt").is_file():
            return Vocabulary(_lines(folder / "vocab.txt") | _added(folder), None, True)
        for name in _PIECES:
            if (folder / name).is_file():
                ids = {piece: number for number, piece in enumerate(_pieces(folder / name))}
                return Vocabulary(ids | _added(folder), None, False)
        for file in sorted(folder.glob("tekken*.json")):
            return Vocabulary(_tekken(file), None, False)
        for file in sorted(folder.glob("*.tiktoken")):
            return Vocabulary(_tiktoken(file) | _added(folder), None, False)
    return None


def _fast(file: Path) -> Vocabulary:
    data: TokenizerFile = read_json(file, TokenizerFile)
    vocab, merges = data["model"]["vocab"], data["model"].get("merges")
    ids = dict(vocab) if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}
    ids |= {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in merges or ()]
    return Vocabulary(ids, pairs or None, True)


def _added(folder: Path) -> dict[str, int]:
    """Read tokens that were added to a tokenizer of the older kind."""
    file = folder / "added_tokens.json"
    added: dict[str, int] = read_json(file, dict[str, int]) if file.is_file() else {}
    return added


def _lines(file: Path) -> dict[str, int]:
    """Read one token per line, in the order of their ids."""
    try:
        words = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise BadInput(f"{file}: not UTF-8. Download it again.") from None
    return {word.removesuffix("\r"): number for number, word in enumerate(words) if word or number + 1 < len(words)}


def _tekken(file: Path) -> dict[str, int]:
    data: Tekken = read_json(file, Tekken)
    controls, size = (data["config"].get(key) for key in ("default_num_special_tokens", "default_vocab_size"))
    first = controls if isinstance(controls, int) else 0
    count = size - first if isinstance(size, int) else len(data["vocab"])
    return {str(entry.get("token_bytes")): first + number for number, entry in enumerate(data["vocab"][:count])}


def _tiktoken(file: Path) -> dict[str, int]:
    """Read lines of base64 and rank."""
    ids = {}
    for line in _lines(file):
        token, _, rank = line.partition(" ")
        if not rank.isdecimal():
            raise BadInput(f"{file}: not a table of tokens and ranks. Download it again.")
        ids[token] = int(rank)
    return ids


def _pieces(file: Path) -> list[str]:
    """Read the pieces of a sentencepiece model, by id."""
    from google.protobuf.message import DecodeError
    from transformers.utils import sentencepiece_model_pb2_new

    model = sentencepiece_model_pb2_new.ModelProto()  # type: ignore[attr-defined]  # created at import
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise BadInput(f"{file}: not a sentencepiece model. Download it again.") from None
    return [piece.piece for piece in model.pieces]
