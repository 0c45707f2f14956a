"""Count what it costs to make a model of each method: computing time and trained tokens. Pure.

Counted are the trainings and merges that a model is made from, each as if no other run shared it. Not counted are the
base, text and items, scoring, and the search for settings on dev. Merges need the English SFT, which is trained once
for all languages and CT budgets, so costs are given with it and without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.baselines import BASELINES
from pipeline.cost import hardware
from pipeline.report.chart_data import Table, Value
from pipeline.report.records import Evaluation, label, mean
from pipeline.report.results import budget_name
from pipeline.report.wording import listed

MADE_OF = ("ct", "sft", "merge", "weights")  # kinds of stages that count
SEARCH = "tune"  # roles of parents that begin with it hold a search for settings
UNITS = ((7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))  # from, seconds of one, name
COSTS = {
    "time": "{unit} of one device, beyond the English SFT",
    "time_all": "{unit} of one device, with the English SFT",
    "trained": "tokens trained, beyond the English SFT",
    "trained_all": "tokens trained, with the English SFT",
}
COLUMNS = ("method", "tokens", "accuracy", "bits", *COSTS)
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """Of one model, or the mean over seeds. seconds: of one device. tokens: trained on. shared: the English SFT's."""

    seconds: float
    tokens: float
    shared_seconds: float
    shared_tokens: float


def costs(evaluations: Iterable[Evaluation], stages: Sequence[Record]) -> dict[tuple[str, int], Cost]:
    """By method and CT budget, the mean cost over seeds; without methods whose stages have no records.

    evaluations: whose folders the store named by slug and key. stages: the records of stage.json files.
    """
    by_name = {f"{record['slug']}-{record['key']}": record for record in stages if record["kind"] == "eval"}
    by_key = {str(record["key"]): record for record in stages}
    found: dict[tuple[str, int], list[Cost]] = {}
    for one in evaluations:
        record = by_name.get(one.folder.name)
        made = _made_of(record, by_key) if record is not None else {}
        if made and all(made.values()):
            found.setdefault((one.method, one.ct_tokens), []).append(_cost([each for each in made.values() if each]))
    return {
        cell: Cost(*(mean([getattr(cost, name) for cost in seeds]) for name in vars(seeds[0])))
        for cell, seeds in found.items()
    }


def table(plane: Table, found: Mapping[tuple[str, int], Cost]) -> tuple[Table, str]:
    """Scores and costs of each method and CT budget, and the unit of the times.

    plane: of `chart_data.plane`. Empty unless merges and CT-then-SFT can be compared.
    """
    every = [cost.seconds + cost.shared_seconds for cost in found.values()]
    size, unit = next((size, unit) for least, size, unit in UNITS if max(every, default=0.0) >= least)
    rows: list[tuple[Value, ...]] = []
    for row in plane.records():
        cost = found.get((str(row["method"]), int(row["tokens"] or 0)))
        if cost is not None:
            times = [round(time / size, 4) for time in (cost.seconds, cost.seconds + cost.shared_seconds)]
            trained = [round(tokens) for tokens in (cost.tokens, cost.tokens + cost.shared_tokens)]
            rows.append((row["method"], row["tokens"], row["accuracy"], row["bits"], *times, *trained))
    names = {str(row[0]) for row in rows}
    compared = "ct_then_sft" in names and any(name not in BASELINES for name in names)
    return Table(COLUMNS, rows if compared else []), unit


def sentence(priced: Table, unit: str) -> str:
    """What a merge and CT-then-SFT cost at the largest budget that both have; empty without them."""
    records = priced.records()
    budgets = {int(row["tokens"] or 0) for row in records if row["method"] == "ct_then_sft"}
    merges = [row for row in records if row["method"] not in BASELINES and row["tokens"] in budgets]
    if not merges:
        return ""
    budget = max(int(row["tokens"] or 0) for row in merges)
    at = {row["method"]: row for row in records if row["tokens"] == budget}
    named = [str(row["method"]) for row in merges if row["tokens"] == budget]
    merged = {cost: mean([float(at[name][cost] or 0) for name in named]) for cost in ("time", "trained")}
    both = at["ct_then_sft"]
    return (
        f"At {budget_name(budget)} tokens and beyond the English SFT, CT-then-SFT took {both['time']:.3g} {unit} and "
        f"trained on {both['trained']:,} tokens. A merge took {merged['time']:.3g} {unit} and trained on "
        f"{merged['trained']:,.0f} tokens (mean of {listed([label(name) for name in named])})."
    )


def _made_of(record: Record, by_key: Mapping[str, Record]) -> dict[str, Record | None]:
    """By key, the trainings and merges that a model is made from; None for one without a record."""
    made: dict[str, Record | None] = {}
    for role, parent in (record.get("parents") or {}).items():
        # a decay continues its trunk, whose tokens and time its own record has
        if parent["kind"] in MADE_OF and role != "trunk" and not role.startswith(SEARCH):
            found = by_key.get(parent["key"])
            made |= {parent["key"]: found, **(_made_of(found, by_key) if found else {})}
    return made


def _cost(made: Sequence[Record]) -> Cost:
    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for record in made:
        seconds, tokens = _alone(record)
        of = sums[_english_sft(record)]
        of[0] += seconds
        of[1] += tokens
    return Cost(*sums[False], *sums[True])


def _alone(record: Record) -> tuple[float, float]:
    """Seconds of one device, and tokens, had this stage continued no smaller budget."""
    measured = hardware.recorded_speed(record)
    seconds = float(record["seconds"]) * (measured.devices if measured else 1)
    if record["kind"] not in ("ct", "sft"):
        return seconds, 0.0
    amount, resumed = float(record.get("amount") or 0), float(record.get("resumed_tokens") or 0) / 1e6
    return seconds * ((amount + resumed) / amount if amount else 1.0), (amount + resumed) * 1e6


def _english_sft(record: Record) -> bool:
    """Whether this is SFT of the base, which all languages and budgets share."""
    parents = record.get("parents") or {}
    kinds = {role: parent["kind"] for role, parent in parents.items()}
    return record["kind"] == "sft" and kinds.get("model") in ("base", "model") and kinds.get("blocks") == "sft_blocks"
