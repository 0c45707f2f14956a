"""What lm-eval logged of a task's documents -> lines of scores.jsonl and samples.jsonl.

docs/reference/results.md has their fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, log
from numbers import Real
from typing import Any

from common.errors import BadInput
from eval import metrics
from eval.metrics import Interval, mean_interval, mean_ratio_interval, ratio_interval, wilson
from eval.task_checks import LOWER, lower_is_better
from eval.task_set import BITS, CALIBRATED, CORRECT_BITS, ScoredTask, mean_metrics


def task_records(
    name: str, entry: ScoredTask, logged: Logged, unlabelled: Logged = (), results: Mapping[str, Any] | None = None
) -> tuple[list[Record], list[Record]]:
    """Return score records (one per metric) and samples (of the primary metric) of one task.

    unlabelled: the log of the task's calibration prompts; without any, its own prompts are used.
    results: lm-eval's aggregates by `metric,filter`, for tasks that generate.
    """
    if entry.task.OUTPUT_TYPE == "generate_until":
        return generated_records(name, entry, logged, results or {}, sample_heads(name, first_filter(logged)))
    logged, unlabelled = first_filter(logged), first_filter(unlabelled)
    averaged = mean_metrics(entry.task)
    metrics = [
        metric
        for metric in logged[0]["metrics"]
        if metric == BITS or (metric in averaged and isinstance(logged[0][metric], Real))
    ]
    calibrated = [CALIBRATED] if entry.labels else []
    if entry.primary not in metrics + calibrated:
        there = ", ".join(metrics) or "none"
        raise BadInput(
            f"tasks: {name} has no metric {entry.primary!r} that is the mean of a number for each document"
            f" (it has {there})"
        )
    if entry.primary == BITS:
        return _text_records(name, entry, logged)
    heads = sample_heads(name, logged)
    answers = [gold_answer(entry.task, sample) for sample in logged]
    records: list[Record] = []
    samples: list[Record] = []
    for metric in [*calibrated, *(metric for metric in metrics if metric != BITS)]:
        if metric == CALIBRATED:
            chosen = calibrated_predictions(entry, logged, unlabelled or logged)
            outcomes = [(float(choice == row["target"]), choice) for choice, row in zip(chosen, logged, strict=True)]
        else:
            outcomes = [(float(row[metric]), predicted_choice(metric, row, entry.task)) for row in logged]
        scores = [score for score, _ in outcomes]
        binary = set(scores) <= {0.0, 1.0}
        interval = wilson(round(sum(scores)), len(scores)) if binary else mean_interval([scores])
        records.append(
            record(name, entry, metric, sum(scores) / len(scores), interval, len(scores))
            | {"chance": entry.chance, "trivial": entry.trivial, "predictions": histogram(entry, logged, outcomes)}
            | ({LOWER: False} if metric in lower_is_better(entry.task) else {})
        )
        if metric == entry.primary:
            samples = [
                head | {"metric": metric, "score": score, "prediction": choice, "target": row["target"], **gold}
                for head, (score, choice), row, gold in zip(heads, outcomes, logged, answers, strict=True)
            ]
    if all(answers):
        bits, sizes = [gold["answer_bits"] for gold in answers], [gold["answer_bytes"] for gold in answers]
        value = sum(bits) / sum(sizes)
        records.append(record(name, entry, CORRECT_BITS, value, ratio_interval(bits, sizes), len(bits)))
    return records, samples


def _text_records(name: str, entry: ScoredTask, logged: Logged) -> tuple[list[Record], list[Record]]:
    """Return bits under the model, and bytes as UTF-8: of each document, and of all."""
    samples = [
        head | {"metric": BITS, "bits": -nats / log(2), "bytes": size}
        for head, (nats, size) in zip(sample_heads(name, logged), (row[BITS] for row in logged), strict=True)
    ]
    bits, sizes = [sample["bits"] for sample in samples], [sample["bytes"] for sample in samples]
    value = sum(bits) / sum(sizes)
    return [record(name, entry, BITS, value, ratio_interval(bits, sizes), len(samples))], samples


def record(
    name: str, entry: ScoredTask, metric: str, value: float, interval: tuple[float, float], n: int
) -> dict[str, Any]:
    """Return one line of scores.jsonl; fields that only accuracies have are null."""
    return {
        "task": name,
        "family": entry.family,
        "language": entry.language,
        "metric": metric,
        "primary": metric == entry.primary,
        "value": value,
        "low": interval[0],
        "high": interval[1],
        "n": n,
        "chance": None,
        "trivial": None,
        "predictions": None,
    }


def first_filter(logged: Logged) -> list[dict[str, Any]]:
    """Return each document once, by its number: a task with several filters logs its documents once per filter."""
    if not logged:
        return []
    first = logged[0]["filter"]
    return sorted((sample for sample in logged if sample["filter"] == first), key=lambda sample: sample["doc_id"])


def sample_heads(name: str, logged: Logged) -> list[Record]:
    """Return the first fields of samples: the task, the item's id, and the document that it was made from.

    The id is the item's if all items have one and no two the same, else its number in the task. An item without a
    document counts as a document.
    """
    own_ids = [sample["doc"].get("id") if isinstance(sample["doc"], dict) else None for sample in logged]
    unique = None not in own_ids and len({str(id_) for id_ in own_ids}) == len(own_ids)
    ids = [str(id_) for id_ in own_ids] if unique else [str(sample["doc_id"]) for sample in logged]
    documents = [sample["doc"].get("document") if isinstance(sample["doc"], dict) else None for sample in logged]
    return [
        {"task": name, "id": id_, "document": str(document or id_)}
        for id_, document in zip(ids, documents, strict=True)
    ]


def choice_loglikelihoods(task: Any, sample: dict[str, Any]) -> list[float]:
    """Return the log-likelihoods of the choices; a task of mutual information has further answers after those."""
    choices = task.doc_to_choice(sample["doc"])
    return [loglikelihood for loglikelihood, _ in sample["filtered_resps"][: len(choices)]]


def predicted_choice(metric: str, sample: dict[str, Any], task: Any) -> Any:
    """Return the number of the choice that a metric takes; None if it is not known."""
    if task.OUTPUT_TYPE == "multiple_choice" and metric in ("acc", "acc_norm"):
        choices, values = task.doc_to_choice(sample["doc"]), choice_loglikelihoods(task, sample)
        if metric == "acc_norm":
            values = [value / len(choice) for value, choice in zip(values, choices, strict=True)]
        return values.index(max(values))
    return None


def calibrated_predictions(entry: ScoredTask, logged: Logged, unlabelled: Logged) -> list[int]:
    """Return the number of each item's choice, with the labels' priors over the unlabelled prompts divided out."""
    assert entry.labels is not None
    orders = [[entry.task.doc_to_choice(row["doc"]).index(label) for label in entry.labels] for row in logged]
    other_orders = [[entry.task.doc_to_choice(row["doc"]).index(label) for label in entry.labels] for row in unlabelled]

    def by_label(rows: Logged, orders: list[list[int]]) -> list[list[float]]:
        values = [choice_loglikelihoods(entry.task, row) for row in rows]
        return [[value[i] for i in order] for value, order in zip(values, orders, strict=True)]

    labels = metrics.calibrated_choices(by_label(logged, orders), by_label(unlabelled, other_orders))
    return [order[label] for order, label in zip(orders, labels, strict=True)]


def gold_answer(task: Any, sample: dict[str, Any]) -> dict[str, float]:
    """Return bits and bytes of the right choice as it was scored, delimiter included; nothing if no choice is right."""
    target = sample["target"]
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input or not isinstance(target, int):
        return {}
    choices = task.doc_to_choice(sample["doc"])
    if not 0 <= target < len(choices):
        return {}
    scored = sample["arguments"][target][1]  # by a chat template lm-eval leaves the delimiter out
    bits = -choice_loglikelihoods(task, sample)[target] / log(2)
    return {"answer_bits": bits, "answer_bytes": len(scored.encode())}


def histogram(entry: ScoredTask, logged: Logged, outcomes: Iterable[tuple[float, Any]]) -> dict[str, int] | None:
    """Count how often each label was predicted; None if the choices are not a fixed set of labels."""
    if entry.labels is None:
        return None
    counts = Counter(
        entry.task.doc_to_choice(row["doc"])[choice] for row, (_, choice) in zip(logged, outcomes, strict=True)
    )
    return {label: counts[label] for label in entry.labels}


def mean_records(records: Iterable[Record], samples: Sequence[Record], suffix: str = "") -> list[Record]:
    """Return per language the unweighted means over tasks of primary scores and of the right answer's bits per byte.

    Bootstraps are stratified by task. Left out is what is not an accuracy: bits per byte of text, metrics that are
    better the lower they are, and metrics that are not a mean over documents. chance and trivial are means too, None if
    a task has none. suffix: of the tasks' names, for means of tasks that were prompted in another way.
    """
    by_language: dict[str, list[Record]] = {}
    for row in records:
        accuracy = row["metric"] != BITS and row.get(LOWER, True) and not row.get(AGGREGATE)
        if (row["primary"] and accuracy) or row["metric"] == CORRECT_BITS:
            by_language.setdefault(row["language"], []).append(row)
    by_task: dict[str, list[Record]] = {}
    for sample in samples:
        by_task.setdefault(sample["task"], []).append(sample)
    means = []
    for language, rows in by_language.items():
        head = {"task": f"mean_{language}{suffix}", "family": "mean", "language": language}
        if scored := [row for row in rows if row["primary"]]:
            interval = mean_interval([[sample["score"] for sample in by_task[row["task"]]] for row in scored])
            levels = {name: _mean_or_none([row[name] for row in scored]) for name in ("chance", "trivial")}
            means.append(_mean_record(head, "acc", scored, interval) | levels)
        if coded := [row for row in rows if row["metric"] == CORRECT_BITS]:
            groups = [[(s["answer_bits"], s["answer_bytes"]) for s in by_task[row["task"]]] for row in coded]
            means.append(_mean_record(head, CORRECT_BITS, coded, mean_ratio_interval(groups)))
    return means


def _mean_record(head: Record, metric: str, rows: Sequence[Record], interval: tuple[float, float]) -> Record:
    value, n = sum(row["value"] for row in rows) / len(rows), sum(row["n"] for row in rows)
    numbers = {"value": value, "low": interval[0], "high": interval[1], "n": n}
    nothing = {"chance": None, "trivial": None, "predictions": None}
    return {**head, "metric": metric, "primary": metric == "acc", **numbers, **nothing}


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


Record = dict[str, Any]
Logged = Sequence[dict[str, Any]]  # what lm-eval logs with log_samples, a mapping for each document and filter
UNFILTERED = "none"  # lm-eval's name of what does nothing
AGGREGATE = "aggregate"  # a field of records, True, of metrics that are no mean over documents: chrF, BLEU


def full_metric_name(metric: str, of_filter: str) -> str:
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
    name: str, entry: ScoredTask, logged: Logged, results: Mapping[str, Any], heads: Sequence[Record]
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
            full = full_metric_name(metric, of_filter)
            primary = not samples and entry.primary in (metric, full)
            records.append(_record(name, entry, metric, full, primary, float(value), items))
            if primary:
                samples = [
                    head | {"metric": full} | scored | answer_fields(entry.task, row)
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
    name: str, entry: ScoredTask, metric: str, full: str, primary: bool, value: float, items: Sequence[Any]
) -> Record:
    scores = values_to_average(entry.task, metric, items)
    low, high = metric_interval(entry.task, metric, items, value)
    record: Record = {"task": name, "family": entry.family, "language": entry.language, "metric": full}
    record |= {"primary": primary, "value": value, "low": low, "high": high, "n": len(items)}
    record |= {"chance": entry.chance, "trivial": entry.trivial, "predictions": None}
    record |= {LOWER: False} if metric in lower_is_better(entry.task) else {}
    return record | ({AGGREGATE: True} if scores is None else {})


def values_to_average(task: Any, metric: str, items: Sequence[Any]) -> list[float] | None:
    """Return the numbers of documents whose mean a metric is; None where it is another aggregate."""
    from lm_eval.api.metrics import mean

    if task.aggregation().get(metric, mean) is not mean or not all(isinstance(item, Real) for item in items):
        return None
    return [float(item) for item in items]


def metric_interval(task: Any, metric: str, items: Sequence[Any], value: float) -> Interval:
    """Return the 95% interval of a metric over documents."""
    scores = values_to_average(task, metric, items)
    if scores is None:
        return metrics.aggregate_interval(task.aggregation()[metric], items, value)
    return wilson(round(sum(scores)), len(scores)) if set(scores) <= {0.0, 1.0} else mean_interval([scores])


def _scores(task: Any, metric: str, rows: Logged) -> list[Record]:
    """Return what each document adds to a metric: its score; of BLEU, chrF and TER the counts that are summed up.

    alone: the score of the document by itself. counted: which of the three the counts are of.
    """
    items = [row.get(metric) for row in rows]
    if (scores := values_to_average(task, metric, items)) is not None:
        return [{"score": score} for score in scores]
    aggregate = task.aggregation().get(metric)
    counts = metrics.sentence_counts(aggregate, items) if aggregate is not None and None not in items else None
    if counts is None:
        return [{} for _ in rows]
    alone = metrics.sentence_scores(aggregate, counts)
    counted = metrics.metric_name_of(aggregate)
    return [
        {"alone": score, "counts": row.tolist(), "counted": counted} for score, row in zip(alone, counts, strict=True)
    ]


def answer_fields(task: Any, row: Mapping[str, Any]) -> Record:
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
