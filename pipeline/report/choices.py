"""What the tune stages chose on dev."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from common.files import read_jsonl
from pipeline.report.records import Choice


@dataclass(frozen=True)
class Chosen:
    """The settings chosen for one merge, and how.

    tries: among how many. metric: `acc` or `bits_per_byte`. score: theirs on dev. leads: as in `Choice`.
    """

    method: str
    ct_tokens: int
    seed: int
    settings: Mapping[str, Any]
    tries: int
    metric: str
    score: float
    leads: bool = True


def read(choices: Iterable[Choice]) -> list[Chosen]:
    """By method as they come, budget and seed."""
    import yaml

    chosen: list[Chosen] = []
    order: dict[str, int] = {}
    for choice in choices:
        order.setdefault(choice.method, len(order))
        settings = yaml.safe_load((choice.folder / "choice.yml").read_text(encoding="utf-8"))
        tries = read_jsonl(choice.folder / "tries.jsonl")
        best = next(row for row in tries if row["settings"] == settings)
        cell = (choice.method, choice.ct_tokens, choice.seed)
        chosen.append(Chosen(*cell, settings, len(tries), best["metric"], best["score"], choice.leads))
    return sorted(chosen, key=lambda choice: (order[choice.method], choice.ct_tokens, choice.seed))
