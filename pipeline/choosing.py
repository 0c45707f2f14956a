"""A selection among trials by their mean score on dev over the cells of a sweep that scored them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import read_jsonl, write_jsonl
from pipeline.execute import Job

METRICS = {"acc": max, "bits_per_byte": min}
TRIES, CHOICE = "tries.jsonl", "choice.yml"


def best_of(tries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the best try; of equals, the first."""
    return METRICS[tries[0]["metric"]](tries, key=lambda row: row["score"])


def chosen(job: Job) -> tuple[int, dict[str, Any]]:
    """Return (number, settings) of the trial that the parents `tune`, or `tune-0`, `tune-1`, ... of a stage select.

    If several select it, their mean is written among the stage's files, as a single one writes it among its own.
    """
    folders = [folder for role, folder in job.folders.items() if job.stage.parents[role].kind == "tune"]
    by_cell = [read_jsonl(folder / TRIES) for folder in folders]
    means = [mean_of(rows) for rows in zip(*by_cell, strict=True)]
    best = best_of(means)
    if len(folders) > 1:
        write(job.out, means)
    return means.index(best), best["settings"]


def mean_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one try as several cells scored it: its mean, and what each cell gave where they are several."""
    first, *others = rows
    if any(row["settings"] != first["settings"] for row in others):
        raise ValueError(f"cells scored other tries: {[row['settings'] for row in rows]}")
    scores = [row["score"] for row in rows]
    return {**first, "score": sum(scores) / len(scores), **({"scores": scores} if others else {})}


def write(folder: Path, tries: Sequence[dict[str, Any]]) -> None:
    """Write the tries, one row per try, and the settings of the best."""
    import yaml

    write_jsonl(folder / TRIES, tries)
    (folder / CHOICE).write_text(yaml.safe_dump(best_of(tries)["settings"], sort_keys=False), encoding="utf-8")
