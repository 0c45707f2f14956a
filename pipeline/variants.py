"""Variants of a cell: the same cell with further overrides, whose CT merges name as `ct@NAME`.

A variant has the base, the budget and the seed of its cell. Of a variant only its CT is planned, with what that needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import BadInput
from common.project import CONF
from pipeline import old_names
from pipeline.config import Config

OPENING, CLOSING, QUOTES = "[{(", "]})", "\"'"


def split(text: str) -> list[str]:
    """Return the overrides in a text: words, which may have blanks inside quotation marks and brackets."""
    words, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
            if letter.isspace() and not depth:
                words.append("")
                continue
        words[-1] += letter
    return [word for word in words if word]


def relative(cell: Sequence[str], text: str) -> list[str]:
    """Return the overrides of a cell, followed by those of its variant.

    A group that the variant chooses begins with its file: what the cell sets in it is dropped. A language brings its
    corpus.
    """
    overrides = old_names.overrides(split(text))
    chosen = {key for key in map(key_of, overrides) if (CONF / key).is_dir()}
    chosen |= {"corpus"} if "language" in chosen else set()
    return [*(line for line in cell if key_of(line).partition(".")[0] not in chosen), *overrides]


def key_of(override: str) -> str:
    """Return the key that an override sets, adds or removes."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def check(cell: Config, variant: Config) -> None:
    """Raise BadInput for a variant whose CT cannot be merged with the cell's, or reads the cell's text by mistake."""
    if variant.model != cell.model:
        raise BadInput("model: must be that of the run, whose base all CT starts from. Leave model out.")
    for key, ours, theirs in (
        ("seed", cell.seed, variant.seed),
        ("ct.tokens", cell.ct.whole_text or cell.ct.tokens, variant.ct.whole_text or variant.ct.tokens),
    ):
        if ours != theirs:
            raise BadInput(f"{key}: must be that of the run, {ours}, got {theirs}. Leave {key} out.")
    if variant.language.code != cell.language.code and variant.corpus == cell.corpus and not variant.ct.source:
        raise BadInput(
            f"language.code={variant.language.code}: its text is that of {cell.language.code}. Set its corpus too, such"
            " as corpus=files corpus.path='data/*.txt'."
        )
