"""What the records of stages (stage.json) tell of a run: time, trained tokens, speed, checksums, versions. Pure.

The price of a method counts the trainings and merges that a model is made from, each as if no other run shared it. Not
counted are the base, text and items, scoring, and the search for settings on dev. Merges need the English SFT, which is
trained once for all languages and CT budgets, so prices are given with it and without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pandas import DataFrame

from common.validation import read_json
from pipeline.baselines import BASELINES
from pipeline.cost import hardware
from pipeline.report.data import DIGITS, csv_text, frame
from pipeline.report.formatting import budget_name, label, listed, percent
from pipeline.report.records import Evaluation, ReportInfo, mean
from pipeline.stages import STAGE_TYPES

MADE_OF = ("ct", "sft", "merge", "weights")  # kinds of stages that count in the price of a model
SEARCH = "tune"  # roles of parents that begin with it hold a search for settings
UNITS = ((7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))  # from, seconds of one, name
COSTS = {
    "time": "{unit} of one device, beyond the English SFT",
    "time_all": "{unit} of one device, with the English SFT",
    "trained": "tokens trained, beyond the English SFT",
    "trained_all": "tokens trained, with the English SFT",
}
PRICE_COLUMNS = ("method", "tokens", "accuracy", "bits", *COSTS)
PERFORMANCE_COLUMNS = ("device", "devices", "tokens_per_second_per_device", "mfu", "peak_memory_bytes")
CSV_COLUMNS = ("kind", "slug", "key", "seconds", "cells", "finished", "commit", *PERFORMANCE_COLUMNS)
CT_BLOCKS = "ct_blocks"  # the kind of stage whose counts.json has what CT read
SPENT, SAVED = "spent", "saved by sharing"  # hours
Record = Mapping[str, Any]


def read_stages(stages: Sequence[tuple[Path, int]]) -> list[tuple[Path, dict[str, Any]]]:
    """Return each stage.json with its content, to which `cells` is added."""
    return [(path, {**read_json(path), "cells": cells}) for path, cells in stages]


def read_counts(records: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the counts.json of the blocks of CT among these stages."""
    files = [path.with_name("counts.json") for path, record in records if record["kind"] == CT_BLOCKS]
    return [read_json(file) for file in files if file.is_file()]


@dataclass(frozen=True)
class StageRecords:
    """The records of a report's stages; `cells` in one is how many cells needed it."""

    records: Sequence[Record] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @property
    def seconds(self) -> float:
        return float(sum(record["seconds"] for record in self.records))

    @property
    def finished(self) -> str:
        """When the last stage ended, to the minute; empty without stages."""
        return max((str(record["finished"]) for record in self.records), default="")[:16].replace("T", " ")

    @property
    def commits(self) -> list[str]:
        return [str(commit) for commit in self._distinct("commit")]

    @property
    def versions(self) -> list[Mapping[str, str]]:
        """The versions of packages, as different stages had them."""
        return self._distinct("versions")

    @property
    def vocabularies(self) -> list[str]:
        """Sentences about models with new tokens."""
        return self._distinct("vocabulary")

    def _distinct(self, key: str) -> list[Any]:
        """Return each value of a key once that is not None, as they come."""
        seen: list[Any] = []
        for value in (record.get(key) for record in self.records):
            if value is not None and value not in seen:
                seen.append(value)
        return seen

    def to_csv(self) -> str:
        """Return stages.csv: one row per stage, with its performance if it is a training that recorded it."""
        rows = (
            {**record, **{column: found.get(column) for column in PERFORMANCE_COLUMNS}}
            for record in self.records
            for found in [record["performance"] if hardware.recorded_speed(record) else {}]
        )
        return csv_text(frame(CSV_COLUMNS, rows))

    @property
    def checksums(self) -> list[tuple[Record, str, str]]:
        """Of each stage that reads or trains: its record, its largest file and the file's SHA-256."""
        rows = []
        for record in self.records:
            files = record.get("files") or {}
            if files and STAGE_TYPES[record["kind"]].resource in ("data", "train"):
                name = max(files, key=lambda file: (files[file]["bytes"], file))
                rows.append((record, name, str(files[name]["sha256"])))
        return rows

    @property
    def performances(self) -> list[tuple[str, ...]]:
        """Of trainings that recorded it: stage, device, devices, tokens/s per device, MFU in percent, peak in GiB."""
        return [
            (
                one.stage,
                one.device,
                str(one.devices),
                f"{one.speed:,.0f}",
                "" if one.mfu is None else percent(one.mfu),
                "" if one.peak is None else f"{one.peak / 2**30:.1f}",
            )
            for one in hardware.recorded_speeds(list(self.records))
        ]

    @cached_property
    def hours(self) -> DataFrame:
        """The hours by kind of stage, and the extra hours without sharing between cells; the longest kind first.

        A budget that resumed a smaller one would have cost its whole budget.
        """
        rows = []
        for record in self.records:
            seconds, uses = float(record["seconds"]), max(1, int(record.get("cells", 1)))
            resumed, amount = float(record.get("resumed_tokens") or 0) / 1e6, float(record.get("amount") or 1)
            alone = seconds * ((amount + resumed) / amount if resumed and amount else 1.0)
            rows.append((str(record["kind"]), seconds, alone * uses - seconds))
        sums = frame(("kind", SPENT, SAVED), rows).groupby("kind", sort=False).agg(list)
        stages = sums[SPENT].map(len)
        hours = sums.map(sum).astype(object).sort_values(SPENT, ascending=False, kind="stable")
        table = [
            (kind, int(stages[kind]), what, round(row[what] / 3600, 5))
            for kind, row in hours.iterrows()
            for what in (SPENT, SAVED)
        ]
        return frame(("kind", "stages", "what", "hours"), table)

    @property
    def total_hours(self) -> tuple[float, float]:
        """The hours spent, and the hours that sharing saved."""
        spent, saved = (sum(self.hours[self.hours.what == what].hours) for what in (SPENT, SAVED))
        return spent, saved

    def training_curves(self, info: ReportInfo) -> DataFrame:
        """Return bits per byte on dev during trainings, if measured.

        A record's `dev` has one line per measurement: `tokens` and, by language, `dev_bits_per_byte`.
        """
        rows = [
            (f"{record['kind']} {record['slug']}", info.languages.get(language, language), line["tokens"], bits)
            for record in self.records
            for line in record.get("dev", ())
            for language, bits in line["dev_bits_per_byte"].items()
        ]
        table = frame(("stage", "language", "tokens", "bits"), rows)
        return table.assign(bits=table.bits.map(lambda bits: round(bits, DIGITS)).astype(object))


@dataclass(frozen=True)
class Cost:
    """Of one model, or the mean over seeds. seconds: of one device. tokens: trained on. shared: the English SFT's."""

    seconds: float
    tokens: float
    shared_seconds: float
    shared_tokens: float


def costs(evaluations: Iterable[Evaluation], stages: Iterable[Record]) -> dict[tuple[str, int], Cost]:
    """Return by method and CT budget the mean cost over seeds; without methods whose stages have no records.

    evaluations: whose folders the store named by slug and key.
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
        cell: Cost(*(mean(values) for values in zip(*map(astuple, seeds), strict=True)))
        for cell, seeds in found.items()
    }


def _made_of(record: Record, by_key: Mapping[str, Record]) -> dict[str, Record | None]:
    """Return by key the trainings and merges that a model is made from; None for one without a record."""
    made: dict[str, Record | None] = {}
    for role, parent in (record.get("parents") or {}).items():
        # a decay continues its trunk, whose tokens and time its own record has
        if parent["kind"] in MADE_OF and role != "trunk" and not role.startswith(SEARCH):
            training = by_key.get(parent["key"])
            made |= {parent["key"]: training, **(_made_of(training, by_key) if training else {})}
    return made


def _cost(made: Sequence[Record]) -> Cost:
    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for record in made:
        seconds, tokens = _alone(record)
        of = sums[_is_english_sft(record)]
        of[0] += seconds
        of[1] += tokens
    return Cost(*sums[False], *sums[True])


def _alone(record: Record) -> tuple[float, float]:
    """Return the seconds of one device, and tokens, had this stage continued no smaller budget."""
    measured = hardware.recorded_speed(record)
    seconds = float(record["seconds"]) * (measured.devices if measured else 1)
    if record["kind"] not in ("ct", "sft"):
        return seconds, 0.0
    amount, resumed = float(record.get("amount") or 0), float(record.get("resumed_tokens") or 0) / 1e6
    return seconds * ((amount + resumed) / amount if amount else 1.0), (amount + resumed) * 1e6


def _is_english_sft(record: Record) -> bool:
    """Return whether this is SFT of the base, which all languages and budgets share."""
    kinds = {role: parent["kind"] for role, parent in (record.get("parents") or {}).items()}
    return record["kind"] == "sft" and kinds.get("model") in ("base", "model") and kinds.get("blocks") == "sft_blocks"


@dataclass(frozen=True)
class Prices:
    """Scores and costs of each method and CT budget. unit: of the times."""

    table: DataFrame
    unit: str

    @property
    def names(self) -> dict[str, str]:
        """What each cost is, by its column."""
        return {cost: text.format(unit=self.unit) for cost, text in COSTS.items()}

    @property
    def sentence(self) -> str:
        """What a merge and CT-then-SFT cost at the largest budget that both have; empty without them."""
        of_both = self.table[self.table.method == "ct_then_sft"].set_index("tokens")
        merges = self.table[~self.table.method.isin(BASELINES) & self.table.tokens.isin(of_both.index)]
        if merges.empty:
            return ""
        budget = max(merges.tokens)
        merges, both = merges[merges.tokens == budget], of_both.loc[budget]
        return (
            f"At {budget_name(budget)} tokens and beyond the English SFT, CT-then-SFT took {both['time']:.3g} "
            f"{self.unit} and trained on {both['trained']:,} tokens. A merge took {mean(list(merges.time)):.3g} "
            f"{self.unit} and trained on {mean(list(merges.trained)):,.0f} tokens "
            f"(mean of {listed([label(name) for name in merges.method])})."
        )


def prices(tradeoff: DataFrame, found: Mapping[tuple[str, int], Cost]) -> Prices:
    """Return what scores cost. Empty unless merges and CT-then-SFT can be compared.

    tradeoff: accuracy and bits per byte (charts/scores.py).
    """
    every = [cost.seconds + cost.shared_seconds for cost in found.values()]
    size, unit = next((size, unit) for least, size, unit in UNITS if max(every, default=0.0) >= least)
    rows = []
    for row in tradeoff.itertuples():
        if (cost := found.get((row.method, row.tokens))) is not None:
            times = (round(time / size, 4) for time in (cost.seconds, cost.seconds + cost.shared_seconds))
            trained = (round(tokens) for tokens in (cost.tokens, cost.tokens + cost.shared_tokens))
            rows.append((row.method, row.tokens, row.accuracy, row.bits, *times, *trained))
    names = {row[0] for row in rows}
    compared = "ct_then_sft" in names and any(name not in BASELINES for name in names)
    return Prices(frame(PRICE_COLUMNS, rows if compared else []), unit)


def new_tokens(stage: Path) -> str | None:
    """Return a sentence about the new tokens that a stage gave a model; None for other stages."""
    from pipeline.stages.vocabulary import VOCABULARY, new_tokens_in_words

    file = stage / VOCABULARY
    if not file.is_file():
        return None
    described = new_tokens_in_words(read_json(file))
    return f"CT has {described}. Bits per byte can be compared with the base's, loss per token cannot."
