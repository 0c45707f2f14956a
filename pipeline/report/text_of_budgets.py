"""The text that each CT budget reads: tokens, distinct tokens, and epochs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.data.blocks import text_seen

KIND = "ct_blocks"
Counts = Mapping[str, Any]  # the counts.json next to CT's blocks


@dataclass(frozen=True)
class TextOfBudget:
    """One language's text, in tokens. passes: how often each distinct token was read, on average."""

    budget: int
    language: str
    tokens: int
    different: int
    passes: float


def read(records: Iterable[Path]) -> list[Counts]:
    """Return the counts of the CT blocks among these stages, given by their stage.json."""
    folders = [path.parent for path in records if path.parent.parent.name == KIND]
    files = [folder / "counts.json" for folder in folders]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def by_budget(counts: Sequence[Counts], budgets: Iterable[int]) -> list[TextOfBudget]:
    """Return one row per budget and language; of blocks of several seeds, those that hold the fewest different tokens.

    Blocks that hold less than a budget do not speak of it.
    """
    rows: list[TextOfBudget] = []
    for budget in budgets:
        seen = [text_seen(each, budget) for each in counts if each["tokens"] >= budget]
        for language in dict.fromkeys(language for each in seen for language in each):
            fewest = min((each[language] for each in seen if language in each), key=lambda text: text.unique_tokens)
            rows.append(TextOfBudget(budget, language, fewest.tokens, fewest.unique_tokens, fewest.epochs))
    return rows
