"""The settings that the tune stages selected on dev."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from common.files import read_jsonl
from pipeline.report.records import Choice, mean


@dataclass(frozen=True)
class Chosen:
    """The settings selected for one merge.

    tries: the number of trials. metric: `acc` or `bits_per_byte`. score: theirs on dev, mean over the cells that count.
    at_budget: the same at this budget alone, if cells of several count. leads: as in `Choice`.
    """

    method: str
    ct_tokens: int
    seed: int
    settings: Mapping[str, Any]
    tries: int
    metric: str
    score: float
    at_budget: float
    leads: bool = True


def read(choices: Iterable[Choice]) -> list[Chosen]:
    """Return the selections by method in their order, budget and seed."""
    import yaml

    chosen: list[Chosen] = []
    order: dict[str, int] = {}
    for choice in choices:
        order.setdefault(choice.method, len(order))
        settings = yaml.safe_load((choice.folder / "choice.yml").read_text(encoding="utf-8"))
        tries = read_jsonl(choice.folder / "tries.jsonl")
        best = next(row for row in tries if row["settings"] == settings)
        cell = (choice.method, choice.ct_tokens, choice.seed)
        scores = zip(choice.judged, best.get("scores", ()), strict=False)
        own = [score for budget, score in scores if budget == choice.ct_tokens]
        at_budget = mean(own) if own else best["score"]
        chosen.append(Chosen(*cell, settings, len(tries), best["metric"], best["score"], at_budget, choice.leads))
    return sorted(chosen, key=lambda choice: (order[choice.method], choice.ct_tokens, choice.seed))
