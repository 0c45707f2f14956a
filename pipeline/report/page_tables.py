"""The text of the page: facts, checksums, configs, settings. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.units import counted, duration, format_tokens
from pipeline.baselines import BASELINES
from pipeline.cost import hardware
from pipeline.report.chart_data import Table, Value
from pipeline.report.claims import Answer
from pipeline.report.headline import unit
from pipeline.report.records import Row, label
from pipeline.report.results import budgets_of
from pipeline.report.wording import confidence, percent
from pipeline.stages import STAGE_TYPES

MOST_MARGINS = 10.0  # that a chart of effects shows
PERFORMANCE_COLUMNS = ("device", "devices", "tokens_per_second_per_device", "mfu", "peak_memory_bytes")
STAGE_COLUMNS = ("kind", "slug", "key", "seconds", "cells", "finished", "commit", *PERFORMANCE_COLUMNS)


def facts(rows: Sequence[Row], stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The run in a few numbers."""
    budgets = [format_tokens(budget) for budget in budgets_of(rows) if budget]
    seeds = sorted({row.seed for row in rows})
    known = [
        ("CT budgets", f"{', '.join(budgets)} tokens" if budgets else "none"),
        ("methods", str(len({row.method for row in rows}))),
        ("seed" if len(seeds) == 1 else f"{len(seeds)} seeds", ", ".join(map(str, seeds))),
        ("models scored", str(len({(row.method, row.ct_tokens, row.seed) for row in rows}))),
    ]
    if stages:
        known.append(("computing time", duration(sum(record["seconds"] for record in stages))))
    return known


def claims(answers: Sequence[Answer]) -> Table:
    """The claims with data, numbered as in the list of claims. value, low, high: in margins, cut at MOST_MARGINS."""
    table: list[tuple[Value, ...]] = []
    for number, answer in enumerate(answers, start=1):
        if (estimate := answer.estimate) is not None:
            margin = answer.claim.margin
            ends = [
                max(-MOST_MARGINS, min(MOST_MARGINS, x / margin)) for x in (estimate.value, estimate.low, estimate.high)
            ]
            effect = confidence(estimate, unit(answer.claim))
            row = f"{number}. {answer.verdict}"
            table.append((row, answer.claim.text, answer.verdict, *(round(x, 3) for x in ends), effect))
    return Table(("row", "text", "verdict", "value", "low", "high", "effect"), table)


def checksums(stages: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str, str]]:
    """Of each stage that reads or trains: its record, its largest file and the file's SHA-256."""
    listed = []
    for record in stages:
        files = record.get("files") or {}
        if files and STAGE_TYPES[record["kind"]].resource in ("data", "train"):
            name = max(files, key=lambda file: (files[file]["bytes"], file))
            listed.append((record, name, str(files[name]["sha256"])))
    return listed


def stages_csv(stages: Iterable[Mapping[str, Any]]) -> str:
    """stages.csv: one row for each stage, with its performance if it is a training that recorded it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, STAGE_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in stages:
        found = record["performance"] if hardware.recorded_speed(record) else {}
        writer.writerow({**record, **{name: found.get(name) for name in PERFORMANCE_COLUMNS}})
    return text.getvalue()


def performances(stages: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Trainings that recorded it: stage, device, devices, tokens/s per device, MFU in percent, peak in GiB."""
    return [
        (
            each.stage,
            each.device,
            str(each.devices),
            f"{each.speed:,.0f}",
            "" if each.mfu is None else percent(each.mfu),
            "" if each.peak is None else f"{each.peak / 2**30:.1f}",
        )
        for each in hardware.recorded_speeds(list(stages))
    ]


def distinct(values: Any) -> list[Any]:
    """Each value that is not None once, as they come."""
    seen: list[Any] = []
    for value in values:
        if value is not None and value not in seen:
            seen.append(value)
    return seen


def settings_text(settings: Mapping[str, Any]) -> str:
    """Chosen settings as one line, without the method (its name is in the table already)."""
    return ", ".join(f"{key} = {value}" for key, value in settings.items() if key != "method")


def sft_settings(configs: Mapping[str, Mapping[str, Any]], methods: Iterable[str]) -> str | None:
    """Which checkpoints were trained with stated SFT settings while those of CT-then-SFT were chosen on dev, if any."""
    sections = [config["sft"] for config in configs.values() if (config.get("sft") or {}).get("grid")]
    stated = [label(method) for method in methods if method in BASELINES and BASELINES[method].sft_as_stated]
    if not sections or not stated:
        return None
    keys = ", ".join(f"{key} of {', '.join(map(str, values))}" for key, values in sections[0]["grid"].items())
    return (
        f"CT-then-SFT was trained with the SFT settings that were best on dev ({keys}); "
        f"{', '.join(stated)} and what is merged of them with the settings stated in the config."
    )


def configs_text(configs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The first cell's config whole, then what the others have that is not the same."""
    import yaml

    if not configs:
        return []
    (first, whole), *others = configs.items()
    listed = [(f"Config of {first}", str(yaml.safe_dump(dict(whole), sort_keys=False, allow_unicode=True)))]
    known = _flat(whole)
    lines = []
    for name, config in others:
        other = {key: value for key, value in _flat(config).items() if known.get(key) != value}
        lines.append(f"{name}: {', '.join(f'{key}={value}' for key, value in other.items())}")
    if others:
        listed.append((f"Settings that differ in the other {counted(len(others), 'cell')}", "\n".join(lines)))
    return listed


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A nested config by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat
