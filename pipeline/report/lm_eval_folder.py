"""Folders that lm-eval wrote by itself (`--output_path`, `--log_samples`) as evaluations of ours."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput
from common.files import write_jsonl
from common.validation import parse_json, read_json
from eval.metrics import mean_interval, ratio_interval, wilson
from eval.records import mean_records
from eval.task_checks import LOWER, is_lower_better
from eval.task_set import BITS, UNDETERMINED
from pipeline.report.records import Evaluation

LARGEST = 1e100  # of a metric's values: their squares are added up
DATE = r"(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)"
SAMPLES = re.compile(rf"samples_(?P<task>.+)_{DATE}\.jsonl$")
RESULTS = re.compile(rf".+_{DATE}\.json$")  # results_<date>.json, or with --output_path name.json name_<date>.json
DEPTHS = ("", "*/", "*/*/")  # the folder of models: --output_path itself, or folders of several runs
MEANS = ("mean", "nanmean")  # the same where every item has a number
# What lm-eval makes otherwise than as a mean where a task does not say how, though its items have numbers.
NO_MEANS = frozenset({"perplexity", "word_perplexity", "byte_perplexity", "bypass"})
# The keys of samples besides those of metrics: before 0.4.7, lm-eval did not write which are metrics.
OF_SAMPLES = frozenset(
    {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash", "prompt_hash", "target_hash"}
)
Record = dict[str, Any]


@with_config(ConfigDict(extra="allow"))
class Row(TypedDict):
    """A line of samples_*.jsonl; beside these keys it has each metric's value.

    lm-eval before 0.4.7 left out filter and metrics, before 0.4.3 doc_hash.
    """

    doc_id: int
    resps: list[Any]
    doc: NotRequired[Any]
    doc_hash: NotRequired[str]
    filter: NotRequired[str]
    metrics: NotRequired[list[str]]


@with_config(ConfigDict(extra="allow"))
class Metric(TypedDict):
    """How a task's score comes from its items. A function is written as its source."""

    metric: str
    aggregation: NotRequired[Any]
    higher_is_better: NotRequired[Any]


@with_config(ConfigDict(extra="allow"))
class Task(TypedDict):
    """A task's config."""

    metric_list: NotRequired[list[Metric] | None]


@with_config(ConfigDict(extra="allow"))
class Results(TypedDict):
    """What is read of results_*.json."""

    model_name: NotRequired[Any]
    configs: NotRequired[dict[str, Task]]
    higher_is_better: NotRequired[dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Scored:
    """An evaluation of a model, and the parts of its name and place, the most telling last: they tell models apart."""

    evaluation: Evaluation
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Metrics:
    """What the results of lm-eval state of the metrics of one task: by name, its entry and whether higher is better."""

    listed: Mapping[str, Metric]
    higher: Mapping[str, Any]

    @classmethod
    def of(cls, results: Results, task: str) -> Metrics:
        listed = {}
        for metric in results.get("configs", {}).get(task, {}).get("metric_list") or []:
            function = re.search(r"\bdef\s+(\w+)", metric["metric"])
            listed[function[1] if function else metric["metric"]] = metric
        return cls(listed, results.get("higher_is_better", {}).get(task, {}))

    def is_mean(self, name: str) -> bool:
        """Return whether a task's score is the mean over its items: perplexity, F1 and the like are not."""
        stated = self._entry(name).get("aggregation")
        return name not in NO_MEANS if stated is None else stated in MEANS

    def is_lower_better(self, name: str) -> bool:
        """Return whether lower is better, as an error rate."""
        return is_lower_better(name, self.higher.get(name, self._entry(name).get("higher_is_better")))

    def _entry(self, name: str) -> Mapping[str, Any]:
        return self.listed.get(name) or {}

    def names(self, row: Mapping[str, Any]) -> list[str]:
        """Return the metrics of a sample; where it does not list them, those of the results, else whatever has a
        number.
        """
        if (metrics := row.get("metrics")) is not None:
            return list(metrics)
        known = [name for name in (self.listed or self.higher) if name in row]
        return known or [name for name in row if name not in OF_SAMPLES and _is_number(row[name])]


def is_one(folder: Path) -> bool:
    """Return whether results of lm-eval lie in it, in a folder of a model in it, or in folders of runs in it."""
    return bool(_models(folder))


def _models(folder: Path) -> list[Path]:
    """Return the folders of its models: itself, or those in it."""
    folders = (model for depth in DEPTHS for model in (sorted(folder.glob(depth)) if depth else [folder]))
    return [model for model in folders if _runs(model)]


def _runs(model: Path) -> list[Path]:
    """Return the files of results in a folder of a model, the newest last."""
    files = [path for path in model.glob("*.json") if RESULTS.match(path.name) or path.name.startswith("results_")]
    return sorted(files, key=lambda path: (_date(path), path.name))


def read(folder: Path, out: Path) -> list[Evaluation]:
    """Return the evaluations of `scored`, without what tells models of one name apart."""
    return [one.evaluation for one in scored(folder, out)]


def scored(folder: Path, out: Path) -> list[Scored]:
    """Write each model's newest results as scores.jsonl and samples.jsonl, one folder per model in `out`.

    Of several runs, each task is read from the newest that scored it, with what that run states of its metrics.
    Raises BadInput if samples were not logged, or are not as lm-eval writes them.
    """
    models = []
    for source in _models(folder):
        results: list[tuple[str, Results]] = [(_date(path), read_json(path, Results)) for path in _runs(source)]
        newest: dict[str, tuple[Path, str]] = {}
        for path in sorted(source.glob("samples_*.jsonl"), key=lambda path: path.name):
            if match := SAMPLES.search(path.name):
                newest[match["task"]] = path, match["date"]  # names end in the date, so that the last is the newest
        if not newest:
            raise BadInput(f"{source}: has no samples_*.jsonl. Run lm-eval with --log_samples.")
        model = str(results[-1][1].get("model_name") or source.name).rstrip("/")
        parts = tuple(part for part in re.split(r"/+", model) if part not in ("", "."))
        name = parts[-1] if parts else source.name
        for word in (*parts, *newest):
            if not word.isprintable():  # a picture cannot contain it
                raise BadInput(f"{source}: the name of a model or task must contain letters, got {word!r}. Rename it.")
        tasks = {task: (path, Metrics.of(_run(results, date, task), task)) for task, (path, date) in newest.items()}
        evaluation = Evaluation(name, 0, 0, _write(tasks, out / str(len(list(out.glob("*"))))))
        above = source if source == folder else source.parent  # a folder of a model is named by the model
        where = (source.name, *(part for part in above.resolve().parts if part != "/"))
        models.append(Scored(evaluation, (*where, *(parts or (name,)))))
    return models


def _date(path: Path) -> str:
    match = RESULTS.search(path.name)
    return match["date"] if match else ""


def _run(results: Sequence[tuple[str, Results]], date: str, task: str) -> Results:
    """Return the results of the run that wrote a task's samples, else the newest that states something of the task."""
    for other, run in results:
        if other == date:
            return run
    return next((run for _, run in reversed(results) if task in run.get("configs", {})), results[-1][1])


def apart(models: Sequence[Scored]) -> list[Evaluation]:
    """Name evaluations of models of one name by the part of their paths that differs: `a/step-500`.

    Raises BadInput for a folder that was given twice.
    """
    names = [_apart(one, [other for other in models if other is not one]) for one in models]
    if len(set(names)) < len(names):
        names = ["/".join(one.parts) for one in models]
    return [
        Evaluation(name, one.evaluation.ct_tokens, one.evaluation.seed, one.evaluation.folder)
        for name, one in zip(names, models, strict=True)
    ]


def _apart(one: Scored, others: Sequence[Scored]) -> str:
    """Return a model's name, with the last part of its path that no other model of the name has there, if there are
    others.
    """
    name = one.evaluation.method
    same = [other.parts for other in others if other.evaluation.method == name]
    if not same:
        return name
    if one.parts in same:
        raise BadInput(f"{name}: a folder of lm-eval is given twice. Pass each folder once.")
    places = range(2, len(one.parts) + 1)
    part = next((one.parts[-n] for n in places if all(other[-n:][:1] != one.parts[-n:][:1] for other in same)), None)
    return f"{part}/{name}" if part else "/".join(one.parts)


def _write(tasks: Mapping[str, tuple[Path, Metrics]], folder: Path) -> Path:
    records: list[Record] = []
    samples: list[Record] = []
    for task, (path, metrics) in sorted(tasks.items()):
        of_task, answered = _task(task, list(_of_first_filter(_rows(path))), path, metrics)
        records += of_task
        samples += answered
    records += mean_records(records, samples)
    folder.mkdir(parents=True)
    write_jsonl(folder / "scores.jsonl", records)
    write_jsonl(folder / "samples.jsonl", samples)
    return folder


def _rows(path: Path) -> list[Record]:
    """Return the lines of samples_*.jsonl. Raises BadInput that names file and line."""
    with path.open("rb") as file:
        rows = [parse_json(line, f"{path} line {number}", Row) for number, line in enumerate(file, start=1)]
    if not rows:
        raise BadInput(f"{path}: is empty. Run lm-eval again with --log_samples.")
    return rows


def _of_first_filter(rows: Sequence[Record]) -> Iterator[Record]:
    """Yield each document once.

    Of several filters the first counts; lm-eval writes its documents before those of others.
    """
    seen = set()
    for row in rows:
        if row.get("filter") == rows[0].get("filter") and (row["doc_id"] not in seen or "filter" in row):
            seen.add(row["doc_id"])
            yield row


def _hash(row: Mapping[str, Any]) -> str:
    """Return the hash of a document: lm-eval's own, or made as lm-eval makes it."""
    document = row.get("doc_hash") or json.dumps(row.get("doc", row["doc_id"]), indent=2, ensure_ascii=False)
    return str(document) if "doc_hash" in row else hashlib.sha256(document.encode()).hexdigest()


def _is_number(value: Any) -> bool:
    """Return whether it can be added up: NaN and infinity cannot."""
    return isinstance(value, int | float) and abs(value) < LARGEST


def _task(task: str, rows: Sequence[Record], path: Path, metrics: Metrics) -> tuple[list[Record], list[Record]]:
    """Return one record per metric that is the mean of a number for each item, and the samples of the first of them.

    The first of those that are better the higher they are, where there are some.
    """
    hashes = [_hash(row) for row in rows]
    heads = [
        {"task": task, "id": f"{row['doc_id']}-{hashed[:12]}", "document": hashed}
        for row, hashed in zip(rows, hashes, strict=True)
    ]
    base = {"task": task, "language": UNDETERMINED, "trivial": None, "predictions": None, "n": len(rows)}
    names = metrics.names(rows[0])
    if BITS in names:
        return _bits(base, heads, rows, path)
    numbers = [name for name in names if metrics.is_mean(name) and all(_is_number(row.get(name)) for row in rows)]
    if not numbers:
        there = ", ".join(names) or "none"
        raise BadInput(f"{path}: no metric of {task} is a mean over items, got {there}. Score it with such a metric.")
    lower = [name for name in numbers if metrics.is_lower_better(name)]
    first = next((name for name in numbers if name not in lower), numbers[0])
    records = []
    for name in numbers:
        scores = [float(row[name]) for row in rows]
        low, high = wilson(round(sum(scores)), len(rows)) if set(scores) <= {0.0, 1.0} else mean_interval([scores])
        value = {"value": sum(scores) / len(rows), "low": low, "high": high, "chance": _chance(rows, name in lower)}
        direction = {LOWER: False} if name in lower else {}
        records.append({**base, "family": task, "metric": name, "primary": name == first, **value, **direction})
    answered = zip(heads, rows, strict=True)
    return records, [{**head, "metric": first, "score": float(row[first])} for head, row in answered]


def _bits(
    base: Record, heads: Sequence[Record], rows: Sequence[Record], path: Path
) -> tuple[list[Record], list[Record]]:
    """Return bits per byte of a task of text."""
    for row in rows:
        pair = row.get(BITS)
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) and pair[1] > 0):
            raise BadInput(f"{path}: {BITS} of doc_id {row['doc_id']} must be a log-likelihood and a number of bytes.")
    pairs = [(-float(row[BITS][0]) / log(2), float(row[BITS][1])) for row in rows]  # log-likelihood, bytes
    bits, size = zip(*pairs, strict=True)
    low, high = ratio_interval(bits, size)
    value = {"metric": BITS, "primary": True, "value": sum(bits) / sum(size), "low": low, "high": high}
    samples = [{**head, "metric": BITS, "bits": b, "bytes": s} for head, (b, s) in zip(heads, pairs, strict=True)]
    return [{**base, "family": "text", "chance": None, **value}], samples


def _chance(rows: Iterable[Record], error: bool) -> float | None:
    """Return the mean of 1 / number of choices; None if answers were written and not chosen, and of errors."""
    counts = [len(row["resps"]) for row in rows]
    return sum(1 / count for count in counts) / len(counts) if min(counts) > 1 and not error else None
