"""How well a tokenizer fits a language: bytes per token, partial characters, text that is not restored."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.special_tokens import control_tokens

FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")  # a byte, in SentencePiece's byte fallback
BROKEN = "\ufffd"  # decoding writes this for bytes that are not a whole character
MAX_FALLBACK_SHARE = 0.5  # fraction of partial characters above which a tokenizer does not fit a script


@dataclass(frozen=True)
class Fertility:
    """What a tokenizer makes of documents.

    bytes_a_token: UTF-8 bytes.
    fallback: share of tokens that are single bytes or parts of characters.
    unknown: share of tokens that stand for text that is lost.
    returned: share of documents that come back as they were, spaces apart.
    control: how often control tokens are written in them, by their names.
    """

    bytes_a_token: float
    fallback: float
    unknown: float
    returned: float
    control: Mapping[str, int] = field(default_factory=dict)


def measure(tokenizer: Any, texts: Sequence[str]) -> Fertility:
    """Measure a `tokenizers.Tokenizer` on documents (at least one must not be empty)."""
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    ids = [number for encoding in encoded for number in encoding.ids]
    special = tokenizer.model.unk_token if hasattr(tokenizer.model, "unk_token") else None
    unknown = tokenizer.token_to_id(special) if special else None
    names = control_tokens(json.loads(tokenizer.to_str()))
    whole = _whole(tokenizer)
    same = sum(
        "".join(tokenizer.decode(encoding.ids).split()) == "".join(text.split())
        for encoding, text in zip(encoded, texts, strict=True)
    )
    return Fertility(
        sum(len(text.encode()) for text in texts) / max(1, len(ids)),
        sum(not whole(number) for number in ids) / max(1, len(ids)),
        sum(number == unknown for number in ids) / max(1, len(ids)),
        same / len(texts),
        Counter(names[number] for number in ids if number in names),
    )


def _whole(tokenizer: Any) -> Callable[[int], bool]:
    """Return whether a token consists of whole characters."""
    known: dict[int, bool] = {}

    def whole(number: int) -> bool:
        if number not in known:
            piece = tokenizer.id_to_token(number) or ""
            known[number] = not FALLBACK.fullmatch(piece) and BROKEN not in tokenizer.decode([number])
        return known[number]

    return whole


def load(folder: Path, key: str) -> Any:
    """Return the fast tokenizer of a checkpoint folder."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadInput(f"{key}: {folder} has no tokenizer.json. Save its tokenizer there in the fast format.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the library raises nothing more special
        raise BadInput(f"{path}: not a tokenizer file. Save the tokenizer again.") from None  # as in merge/
