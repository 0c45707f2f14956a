"""Folders that lm-eval wrote by itself (`--output_path`, `--log_samples`) as evaluations of ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from math import log
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput
from common.files import write_jsonl
from common.parsing import parse_json, read_json
from eval.score_records import mean_records
from eval.stats import mean_interval, ratio_interval, wilson
from eval.task_set import BITS, UNDETERMINED
from pipeline.report.records import Evaluation

LARGEST = 1e100  # of a metric's values: their squares are added up
SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl$")
Record = dict[str, Any]


@with_config(ConfigDict(extra="allow"))
class Row(TypedDict):
    """A line of samples_*.jsonl; beside these keys it has each metric's value."""

    doc_id: int
    doc_hash: str
    filter: str
    metrics: list[str]
    resps: list[Any]


@with_config(ConfigDict(extra="allow"))
class Metric(TypedDict):
    """How a task's score comes from its items."""

    metric: str
    aggregation: NotRequired[Any]


@with_config(ConfigDict(extra="allow"))
class Task(TypedDict):
    """A task's config."""

    metric_list: NotRequired[list[Metric] | None]


@with_config(ConfigDict(extra="allow"))
class Results(TypedDict):
    """What is read of results_*.json."""

    model_name: NotRequired[Any]
    configs: NotRequired[dict[str, Task]]


def is_one(folder: Path) -> bool:
    """Whether results of lm-eval lie in it, or in a folder of a model in it."""
    return bool(_models(folder))


def _models(folder: Path) -> list[Path]:
    """The folders of its models: itself, or those in it."""
    return [place for place in (folder, *sorted(folder.glob("*/"))) if any(place.glob("results_*.json"))]


def read(folder: Path, out: Path) -> list[Evaluation]:
    """Writes each model's newest results as scores.jsonl and samples.jsonl, a folder a model in `out`.

    Raises BadInput where samples were not logged, or are not as lm-eval writes them.
    """
    evaluations = []
    for place in _models(folder):
        results: Results = read_json(max(place.glob("results_*.json")), Results)
        newest: dict[str, Path] = {}
        for path in sorted(place.glob("samples_*.jsonl"), key=lambda path: path.name):
            if found := SAMPLES.search(path.name):
                newest[found["task"]] = path  # names end in the date, so that the last is the newest
        if not newest:
            raise BadInput(f"{place}: no samples_*.jsonl; run lm-eval with --log_samples")
        name = str(results.get("model_name") or place.name).rstrip("/").rpartition("/")[2]
        for word in (name, *newest):
            if not word.isprintable():  # a picture cannot hold it
                raise BadInput(f"{place}: {word!r} is no name of a model or task; name it in letters")
        evaluations.append(Evaluation(name, 0, 0, _write(newest, results, out / str(len(list(out.glob("*")))))))
    return evaluations


def _write(tasks: dict[str, Path], results: Results, folder: Path) -> Path:
    records: list[Record] = []
    samples: list[Record] = []
    for task, path in sorted(tasks.items()):
        rows = _rows(path)
        rows = [row for row in rows if row["filter"] == rows[0]["filter"]]  # of several filters the first counts
        of_task, answered = _task(task, rows, path, _no_means(results, task))
        records += of_task
        samples += answered
    records += mean_records(records, samples)
    folder.mkdir(parents=True)
    write_jsonl(folder / "scores.jsonl", records)
    write_jsonl(folder / "samples.jsonl", samples)
    return folder


def _rows(path: Path) -> list[Record]:
    """The lines of samples_*.jsonl. Raises BadInput that names file and line."""
    with path.open("rb") as file:
        rows = [parse_json(line, f"{path} line {number}", Row) for number, line in enumerate(file, start=1)]
    if not rows:
        raise BadInput(f"{path}: empty; run lm-eval again with --log_samples")
    return rows


def _no_means(results: Results, task: str) -> set[str]:
    """The metrics that lm-eval makes otherwise than as a mean over items: perplexity, F1."""
    metrics = results.get("configs", {}).get(task, {}).get("metric_list") or []
    return {metric["metric"] for metric in metrics if metric.get("aggregation", "mean") != "mean"}


def _is_number(value: Any) -> bool:
    """Whether it can be added up: NaN and infinity cannot."""
    return isinstance(value, int | float) and abs(value) < LARGEST


def _task(
    task: str, rows: Sequence[Record], path: Path, no_means: Collection[str]
) -> tuple[list[Record], list[Record]]:
    """A record a metric that is the mean of a number for each item, and the samples of the first of them."""
    heads = [
        {"task": task, "id": f"{row['doc_id']}-{row['doc_hash'][:12]}", "document": row["doc_hash"]} for row in rows
    ]
    base = {"task": task, "language": UNDETERMINED, "trivial": None, "predictions": None, "n": len(rows)}
    metrics = list(rows[0]["metrics"])
    if BITS in metrics:
        for row in rows:
            pair = row.get(BITS)
            if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) and pair[1] > 0):
                raise BadInput(
                    f"{path}: {BITS} of doc_id {row['doc_id']} is not a log-likelihood and a number of bytes"
                )
        pairs = [(-float(row[BITS][0]) / log(2), float(row[BITS][1])) for row in rows]  # log-likelihood, bytes
        bits, size = zip(*pairs, strict=True)
        low, high = ratio_interval(bits, size)
        value = {"metric": BITS, "primary": True, "value": sum(bits) / sum(size), "low": low, "high": high}
        told = [{**head, "metric": BITS, "bits": b, "bytes": s} for head, (b, s) in zip(heads, pairs, strict=True)]
        return [{**base, "family": "text", "chance": None, **value}], told
    numbers = [
        metric for metric in metrics if metric not in no_means and all(_is_number(row.get(metric)) for row in rows)
    ]
    if not numbers:
        there = ", ".join(metrics) or "none"
        raise BadInput(f"{path}: no metric of {task} is the mean of a number for each item (it has {there})")
    records = []
    for metric in numbers:
        scores = [float(row[metric]) for row in rows]
        low, high = wilson(round(sum(scores)), len(rows)) if set(scores) <= {0.0, 1.0} else mean_interval([scores])
        value = {"value": sum(scores) / len(rows), "low": low, "high": high, "chance": _chance(rows)}
        records.append({**base, "family": task, "metric": metric, "primary": metric == numbers[0], **value})
    first = numbers[0]
    answered = zip(heads, rows, strict=True)
    return records, [{**head, "metric": first, "score": float(row[first])} for head, row in answered]


def _chance(rows: Iterable[Record]) -> float | None:
    """The mean of 1 / number of choices; None where answers were written and not chosen."""
    counts = [len(row["resps"]) for row in rows]
    return sum(1 / count for count in counts) / len(counts) if min(counts) > 1 else None
