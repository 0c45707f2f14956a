"""The data of charts: flat tables, one per chart, the same for the page and for figures. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any

from eval.task_set import BITS
from pipeline.report.discards import TOP, Discarded
from pipeline.report.paired import Comparison
from pipeline.report.records import ENGLISH, Row
from pipeline.report.results import Measure, languages, measures, points

Value = str | float | int | None
SPENT, SAVED = "spent", "saved by sharing"  # hours
DIGITS = 4  # of scores and shares: far below what intervals leave open


@dataclass(frozen=True)
class Table:
    """Rows of values under names."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Value, ...]]

    def records(self) -> list[dict[str, Value]]:
        """Return the rows as Vega reads them."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def packed(self) -> dict[str, Any]:
        """Encode columns of text as numbers into a list of their values, so that each text is stored once."""
        columns: list[dict[str, Any]] = []
        packed: list[list[Value]] = []
        for place, name in enumerate(self.columns):
            values = [row[place] for row in self.rows]
            if any(isinstance(value, str) for value in values):
                words = list(dict.fromkeys(values))
                number = {word: index for index, word in enumerate(words)}
                columns.append({"name": name, "values": words})
                packed.append([number[value] for value in values])
            else:
                columns.append({"name": name})
                packed.append(values)
        return {"columns": columns, "rows": [list(row) for row in zip(*packed, strict=True)]}


def measure_id(measure: Measure) -> str:
    return f"{measure.language}/{measure.task}/{measure.metric}"


def all_measures(rows: Sequence[Row], target: str) -> list[Measure]:
    """Return those of the target language first, what sums a language up before single tasks."""
    return [measure for language in languages(rows, target) for measure in measures(rows, language)]


def scores(rows: Sequence[Row], shown: Sequence[Measure]) -> Table:
    """Return every measure of every method at every budget: means over seeds, with each seed's value as text.

    tokens is 0 of what no budget changes.
    """
    by_seed: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        named = f"{row.language}/{row.task}/{row.metric}"
        by_seed.setdefault((row.method, named, row.ct_tokens), []).append(row.value)
    table: list[tuple[Value, ...]] = []
    for measure in shown:
        name = measure_id(measure)
        for (method, tokens), point in points(rows, measure).items():
            seeds = by_seed[method, name, tokens]
            spread = f"{min(seeds):.3f} to {max(seeds):.3f}" if len(seeds) > 1 else ""
            numbers = (round(number, DIGITS) for number in (point.value, point.low, point.high))
            table.append((name, method, tokens, *numbers, len(seeds), spread))
    return Table(("measure", "method", "tokens", "value", "low", "high", "seeds", "spread"), table)


def levels(shown: Sequence[Measure]) -> Table:
    """Chance and the trivial baseline of each measure."""
    each = [
        (measure_id(m), name, value) for m in shown for name, value in (("chance", m.chance), ("trivial", m.trivial))
    ]
    return Table(("measure", "level", "value"), [row for row in each if row[2] is not None])


def plane(rows: Sequence[Row], target: str) -> Table:
    """Mean accuracy and bits per byte in the target language, of each method at each budget."""
    shown = measures(rows, target)
    accuracy = next((m for m in shown if m.name == "mean accuracy"), None)
    bits = next((m for m in shown if m.metric == BITS), None)
    columns = ("method", "tokens", "bits", "accuracy")
    if accuracy is None or bits is None:
        return Table(columns, [])
    across, up = points(rows, bits), points(rows, accuracy)
    return Table(
        columns,
        [(*key, round(across[key].value, DIGITS), round(up[key].value, DIGITS)) for key in across if key in up],
    )


QUANTITIES = {  # of SFT's parameters, as discards have them
    "lost": "lost in sign conflict, of all",
    "lost_top": f"lost in sign conflict, of the top {TOP}",
    "trimmed": "trimmed or dropped, of all",
}


def parts(discarded: Iterable[Discarded]) -> Table:
    """Return what each merge discarded of SFT: of the whole model, of each layer and of each kind of module."""
    table: list[tuple[Value, ...]] = []
    for merge in discarded:
        every = {("whole", "whole model"): merge.shares, **merge.parts}
        for (by, part), shares in every.items():
            name = part if by != "layer" or part == "outside" else f"layer {part}"
            values = (round(share, DIGITS) for share in (shares.lost, shares.lost_top, shares.trimmed))
            table.append((merge.method, merge.ct_tokens, by, name, *values))
    return Table(("method", "tokens", "by", "part", *QUANTITIES), table)


def slack_sweep(rows: Sequence[Row], discarded: Sequence[Discarded], target: str) -> Table:
    """Merge whose recipes differ in the slack alone, for every seed: their scores and what they lost, by slack.

    group: the settings that they share, and how the slack is read; TIES without slack stands in the group of each
    reading. Groups of one slack say nothing and are left out.
    """
    plain: dict[str, list[Discarded]] = {}
    slacked: dict[tuple[str, str], list[Discarded]] = {}
    for merge in discarded:
        each = [(merge.settings_except_slack[seed], merge.reading[seed]) for seed in merge.settings_except_slack]
        own = {(json.dumps(shared, sort_keys=True), json.dumps(reading, sort_keys=True)) for shared, reading in each}
        if len(own) == 1:  # else its seeds were tuned apart
            shared, reading = own.pop()
            if merge.plain_ties:
                plain.setdefault(shared, []).append(merge)
            elif merge.slack_for_sft:
                slacked.setdefault((shared, reading), []).append(merge)
    score = {(row[0], row[1]): row[2:] for row in plane(rows, target).rows}
    table: list[tuple[Value, ...]] = []
    for (shared, reading), protecting in slacked.items():
        group = [*plain.get(shared, []), *protecting]
        if len({merge.slack for merge in group}) < 2:
            continue
        name = ", ".join(
            f"{key} {value}" for key, value in (_settings(json.loads(shared)) | json.loads(reading)).items()
        )
        for merge in group:
            bits, accuracy = score.get((merge.method, merge.ct_tokens), (None, None))
            slack = "\u221e" if isinf(merge.slack) else f"{merge.slack:g}"
            order = 1e9 if isinf(merge.slack) else merge.slack
            lost = round(merge.of_top[TOP].lost, DIGITS)
            table.append((name, merge.method, merge.ct_tokens, slack, order, accuracy, bits, lost))
    return Table(("group", "method", "tokens", "slack", "order", "accuracy", "bits", "lost_top"), table)


def _settings(shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return what distinguishes groups of a slack sweep: density (one, or by model), and lambda or the given norm."""
    densities = {name: model["density"] for name, model in shared["models"].items() if "density" in model}
    same = len(set(map(str, densities.values()))) == 1
    density = {"density": next(iter(densities.values()))} if same else {f"density {k}": v for k, v in densities.items()}
    length = {"norm": shared["norm"]} if shared.get("norm") else {"lambda": shared["lambda"]}
    return density | length


def predictions(rows: Sequence[Row], target: str) -> Table:
    """Return, for each task with a fixed set of labels, the fraction of answers per label, over all seeds."""
    counts: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in rows:
        if row.language == target and row.predictions is not None and (row.primary or row.metric == "acc"):
            name = row.family if row.primary else f"{row.family}, raw"
            cell = counts.setdefault((name, row.method, row.ct_tokens), {})
            for given, count in row.predictions.items():
                cell[given] = cell.get(given, 0) + count
    table: list[tuple[Value, ...]] = []
    for (task, method, tokens), cell in counts.items():
        total = max(1.0, sum(cell.values()))
        table += [(task, method, tokens, given, round(count / total, DIGITS)) for given, count in cell.items()]
    return Table(("task", "method", "tokens", "label", "share"), table)


def differences(comparisons: Sequence[Comparison]) -> Table:
    """Paired differences as a table."""
    table: list[tuple[Value, ...]] = []
    for c in comparisons:
        d = c.difference
        numbers = (None if isinf(x) else round(x, DIGITS) for x in (d.value, d.low, d.high, d.mde, c.p_adjusted))
        table.append((c.kind, c.baseline, c.method, c.ct_tokens, *numbers, c.verdict))
    columns = ("kind", "baseline", "method", "tokens", "value", "low", "high", "mde", "p_adjusted", "verdict")
    return Table(columns, table)


def hours(stages: Sequence[Mapping[str, Any]]) -> Table:
    """Return hours by kind of stage, and the extra hours without sharing between cells.

    A record's `cells` counts the cells that needed the stage. A budget that resumed a smaller one would have cost its
    whole budget.
    """
    sums: dict[str, list[float]] = {}
    for record in stages:
        seconds, uses = float(record["seconds"]), max(1, int(record.get("cells", 1)))
        resumed, amount = float(record.get("resumed_tokens") or 0) / 1e6, float(record.get("amount") or 1)
        alone = seconds * ((amount + resumed) / amount if resumed and amount else 1.0)
        each = sums.setdefault(str(record["kind"]), [0.0, 0.0, 0.0])
        each[0] += 1
        each[1] += seconds
        each[2] += alone * uses - seconds
    table: list[tuple[Value, ...]] = []
    for kind, (count, seconds, saved) in sorted(sums.items(), key=lambda item: -item[1][1]):
        table.append((kind, int(count), SPENT, round(seconds / 3600, 5)))
        table.append((kind, int(count), SAVED, round(saved / 3600, 5)))
    return Table(("kind", "stages", "what", "hours"), table)


def training(stages: Sequence[Mapping[str, Any]], target: str, name: str) -> Table:
    """Return bits per byte on dev during trainings, if measured. target, name: of the language.

    A record's `dev` has one line per measurement: `tokens` and, by language, `dev_bits_per_byte`.
    """
    table: list[tuple[Value, ...]] = []
    for record in stages:
        for line in record.get("dev", ()):
            for language, bits in line["dev_bits_per_byte"].items():
                shown = name if language == target else "English" if language == ENGLISH else language
                table.append((f"{record['kind']} {record['slug']}", shown, line["tokens"], round(bits, DIGITS)))
    return Table(("stage", "language", "tokens", "bits"), table)


def total_hours(table: Table) -> tuple[float, float]:
    """Return the hours spent, and the hours that sharing saved."""
    spent, saved = ([float(row[3] or 0) for row in table.rows if row[2] == what] for what in (SPENT, SAVED))
    return sum(spent), sum(saved)
