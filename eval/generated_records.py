"""What lm-eval logged of a task that generates -> a score record for each metric and filter, and samples with answers.

The value is lm-eval's own aggregate over the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any

from common.errors import BadInput
from eval import corpus_metrics
from eval.stats import Interval, mean_interval, wilson
from eval.task_checks import LOWER, lower_is_better
from eval.task_set import Entry

Record = dict[str, Any]
Logged = Sequence[dict[str, Any]]  # what lm-eval logs with log_samples, a mapping for each document and filter
UNFILTERED = "none"  # lm-eval's name of what does nothing
AGGREGATE = "aggregate"  # a field of records, True, of metrics that are no mean over documents: chrF, BLEU


def named(metric: str, of_filter: str) -> str:
    """Return the name of a metric after a filter, as lm-eval writes it; of what is not filtered the metric's own."""
    return metric if of_filter == UNFILTERED else f"{metric},{of_filter}"


def by_filter(logged: Logged) -> dict[str, Logged]:
    """Return the documents in their order, for each filter in the task's order."""
    filters = dict.fromkeys(row["filter"] for row in logged)
    return {
        name: sorted((row for row in logged if row["filter"] == name), key=lambda row: row["doc_id"])
        for name in filters
    }


def generated_records(
    name: str, entry: Entry, logged: Logged, results: Mapping[str, Any], heads: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    """Return score records (one for each metric and filter) and samples (of the primary one) of one task.

    results: lm-eval's aggregates by `metric,filter`. heads: what samples begin with, in the order of documents.
    """
    records: list[Record] = []
    samples: list[Record] = []
    for of_filter, rows in by_filter(logged).items():
        for metric in dict.fromkeys(metric for row in rows for metric in row["metrics"]):
            value = results.get(f"{metric},{of_filter}")
            if not isinstance(value, Real) or not isfinite(value) or _is_bypass(entry.task, metric):
                continue
            items = [row[metric] for row in rows if metric in row]
            full = named(metric, of_filter)
            primary = not samples and entry.primary in (metric, full)
            records.append(_record(name, entry, metric, full, primary, float(value), items))
            if primary:
                samples = [
                    head | {"metric": full} | scored | answered(entry.task, row)
                    for head, row, scored in zip(heads, rows, _scores(entry.task, metric, rows), strict=True)
                ]
    if not samples:
        there = ", ".join(row["metric"] for row in records) or "none"
        raise BadInput(
            f"tasks: {name} has no metric {entry.primary!r} that gives a number, got {there}. Set metadata: primary to"
            " one of these."
        )
    return records, samples


def _record(
    name: str, entry: Entry, metric: str, full: str, primary: bool, value: float, items: Sequence[Any]
) -> Record:
    scores = means(entry.task, metric, items)
    low, high = interval(entry.task, metric, items, value)
    record: Record = {"task": name, "family": entry.family, "language": entry.language, "metric": full}
    record |= {"primary": primary, "value": value, "low": low, "high": high, "n": len(items)}
    record |= {"chance": entry.chance, "trivial": entry.trivial, "predictions": None}
    record |= {LOWER: False} if metric in lower_is_better(entry.task) else {}
    return record | ({AGGREGATE: True} if scores is None else {})


def means(task: Any, metric: str, items: Sequence[Any]) -> list[float] | None:
    """Return the numbers of documents whose mean a metric is; None where it is another aggregate."""
    from lm_eval.api.metrics import mean

    if task.aggregation().get(metric, mean) is not mean or not all(isinstance(item, Real) for item in items):
        return None
    return [float(item) for item in items]


def interval(task: Any, metric: str, items: Sequence[Any], value: float) -> Interval:
    """Return the 95% interval of a metric over documents."""
    scores = means(task, metric, items)
    if scores is None:
        return corpus_metrics.interval(task.aggregation()[metric], items, value)
    return wilson(round(sum(scores)), len(scores)) if set(scores) <= {0.0, 1.0} else mean_interval([scores])


def _scores(task: Any, metric: str, rows: Logged) -> list[Record]:
    """Return what each document adds to a metric: its score; of BLEU, chrF and TER the counts that are summed up.

    alone: the score of the document by itself. counted: which of the three the counts are of.
    """
    items = [row.get(metric) for row in rows]
    if (scores := means(task, metric, items)) is not None:
        return [{"score": score} for score in scores]
    aggregate = task.aggregation().get(metric)
    counts = corpus_metrics.sentence_counts(aggregate, items) if aggregate is not None and None not in items else None
    if counts is None:
        return [{} for _ in rows]
    alone = corpus_metrics.sentence_scores(aggregate, counts)
    counted = corpus_metrics.by_name(aggregate)
    return [
        {"alone": score, "counts": row.tolist(), "counted": counted} for score, row in zip(alone, counts, strict=True)
    ]


def answered(task: Any, row: Mapping[str, Any]) -> Record:
    """Return the question without its examples, the whole answer, and what the metric took of it."""
    said = row["resps"][0][0]
    question = task.doc_to_text(row["doc"])
    return {
        "prediction": row["filtered_resps"][0],
        "target": row["target"],
        "question": question if isinstance(question, str) else None,
        "answer": said if isinstance(said, str) else None,
    }


def _is_bypass(task: Any, metric: str) -> bool:
    """Return whether a metric is lm-eval's stand-in for none."""
    from lm_eval.api.metrics import bypass_agg

    return task.aggregation().get(metric) is bypass_agg
