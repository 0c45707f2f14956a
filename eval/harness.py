"""A checkpoint -> scores and samples, in the record formats of docs/architecture.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.files import publish, write_jsonl
from eval.stats import mean_interval, ratio_interval, wilson
from eval.task_set import Entry, TaskSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Record = dict[str, Any]
BITS = "bits_per_byte"
BATCH_TOKENS = {"cpu": 1024, "elsewhere": 8192}  # on a CPU what fits its caches is fastest, on a GPU what fills it


@dataclass
class Scores:
    """What one checkpoint scored.

    records: lines of scores.jsonl, the tasks in their order and then a mean per language.
    samples: lines of samples.jsonl.
    """

    records: list[Record]
    samples: list[Record]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: TaskSet,
    *,
    batch_tokens: int | None = None,
    device: str | None = None,
) -> Scores:
    """Scores a causal LM in memory on every task of the set, by lm-eval. The model is left in eval mode.

    tasks: what `task_set.prepare` built; it serves any number of models.
    batch_tokens: tokens in one forward pass, padding included (None: 1024 on a CPU, 8192 elsewhere).
    device: where the model is brought to, and left (None: it stays where it is).
    The same model and tasks give the same scores, bit for bit, with the same number of threads.
    Raises BadInput for a model that gives NaN or is too short for a choice, and for a tokenizer without BOS and EOS.
    """
    import lm_eval

    from eval.language_model import PackedLM

    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        name = tokenizer.name_or_path or "given"
        raise BadInput(f"tokenizer: {name} has neither a BOS nor an EOS token, one of which must start every document")
    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    encodings = tasks.encodings.setdefault(fingerprint(tokenizer), {})
    on = "cpu" if model.device.type == "cpu" else "elsewhere"
    lm = PackedLM(model, tokenizer, batch_tokens or BATCH_TOKENS[on], encodings)
    by_name = {name: entry.task for name, entry in tasks.entries.items()}
    result = lm_eval.evaluate(lm, {"tasks": by_name}, limit=tasks.limit, bootstrap_iters=0)
    records: list[Record] = []
    samples: list[Record] = []
    for name, entry in tasks.entries.items():
        task_scores, task_samples = task_records(name, entry, result["samples"][name])
        records += task_scores
        samples += task_samples
    return Scores(records + mean_records(records, samples), samples)


def evaluate_folder(
    checkpoint: Path, tasks: TaskSet, *, batch_tokens: int | None = None, device: str | None = None
) -> Scores:
    """`evaluate` for a Hugging Face folder: in float32 on the CPU, elsewhere in the dtype of its file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (checkpoint / "config.json").is_file():
        raise BadInput(f"model: {checkpoint} is not a Hugging Face checkpoint folder (no config.json)")
    dtype = "float32" if (device or "cpu") == "cpu" else "auto"
    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"model: {checkpoint} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return evaluate(model, tokenizer, tasks, batch_tokens=batch_tokens, device=device)


def fingerprint(tokenizer: Any) -> str | int:
    """What two tokenizers share when they give the same tokens (a slow tokenizer only shares with itself)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return hashlib.sha256(backend.to_str().encode()).hexdigest() if backend is not None else id(tokenizer)


def task_records(name: str, entry: Entry, logged: list[dict[str, Any]]) -> tuple[list[Record], list[Record]]:
    """Score records (a metric each) and samples (of the primary metric) of one task.

    logged: what lm-eval logged of its documents.
    """
    first = logged[0]["filter"]  # a task with several filters logs its documents once for each
    logged = sorted((sample for sample in logged if sample["filter"] == first), key=lambda sample: sample["doc_id"])
    ids = identities(logged)
    metrics = [metric for metric in logged[0]["metrics"] if metric == BITS or isinstance(logged[0][metric], Real)]
    if entry.primary not in metrics:
        there = ", ".join(metrics) or "none"
        raise BadInput(
            f"tasks: {name} has no metric {entry.primary!r} with a number for each document (it has {there})"
        )
    records: list[Record] = []
    samples: list[Record] = []
    for metric in metrics:
        head = {
            "task": name,
            "family": entry.family,
            "language": entry.language,
            "metric": metric,
            "primary": metric == entry.primary,
        }
        if metric == BITS:
            rows = [bits_sample(name, id_, sample) for id_, sample in zip(ids, logged, strict=True)]
            bits, sizes = [row["bits"] for row in rows], [row["bytes"] for row in rows]
            value, (low, high) = sum(bits) / sum(sizes), ratio_interval(bits, sizes)
            records.append(record(head, value, low, high, len(rows), None, None))
        else:
            rows = [item_sample(name, id_, metric, sample, entry.task) for id_, sample in zip(ids, logged, strict=True)]
            scores = [row["score"] for row in rows]
            value = sum(scores) / len(scores)
            low, high = wilson(sum(scores), len(scores)) if set(scores) <= {0.0, 1.0} else mean_interval([scores])
            records.append(record(head, value, low, high, len(rows), entry.chance, entry.trivial))
        samples += rows if metric == entry.primary else []
    return records, samples


def record(
    head: Record, value: float, low: float, high: float, n: int, chance: float | None, trivial: float | None
) -> Record:
    """One line of scores.jsonl."""
    return {**head, "value": value, "low": low, "high": high, "n": n, "chance": chance, "trivial": trivial}


def identities(logged: list[dict[str, Any]]) -> list[str]:
    """The documents' own ids where all have one and no two the same, else their numbers in the task."""
    given = [sample["doc"].get("id") if isinstance(sample["doc"], dict) else None for sample in logged]
    unique = None not in given and len({str(id_) for id_ in given}) == len(given)
    return [str(id_) for id_ in given] if unique else [str(sample["doc_id"]) for sample in logged]


def bits_sample(name: str, id_: str, sample: dict[str, Any]) -> Record:
    """Bits of a document under the model, and its bytes as UTF-8."""
    nats, size = sample[BITS]
    return {"task": name, "id": id_, "metric": BITS, "bits": -nats / log(2), "bytes": size}


def item_sample(name: str, id_: str, metric: str, sample: dict[str, Any], task: Any) -> Record:
    """An item's score under a metric, with the choice that the metric takes where there are choices."""
    prediction = None
    if task.OUTPUT_TYPE == "multiple_choice" and metric in ("acc", "acc_norm"):
        choices = task.doc_to_choice(sample["doc"])
        # a task of mutual information has further answers behind those of the choices
        answers = zip(sample["filtered_resps"], choices, strict=False)
        worth = [loglikelihood / (len(choice) if metric == "acc_norm" else 1) for (loglikelihood, _), choice in answers]
        prediction = worth.index(max(worth))
    elif task.OUTPUT_TYPE == "generate_until":
        prediction = sample["filtered_resps"][0]
    return {
        "task": name,
        "id": id_,
        "metric": metric,
        "score": float(sample[metric]),
        "prediction": prediction,
        "target": sample["target"],
    }


def mean_records(records: Iterable[Record], samples: list[Record]) -> list[Record]:
    """Per language, the unweighted mean of its tasks' primary scores, with a bootstrap stratified by task.

    Bits per byte are left out; chance and trivial are means too, None where a task has none.
    """
    by_language: dict[str, list[Record]] = {}
    for row in records:
        if row["primary"] and row["metric"] != BITS:
            by_language.setdefault(row["language"], []).append(row)
    means = []
    for language, rows in by_language.items():
        low, high = mean_interval(
            [[sample["score"] for sample in samples if sample["task"] == row["task"]] for row in rows]
        )
        head = {"task": f"mean_{language}", "family": "mean", "language": language, "metric": "acc", "primary": True}
        value, n = sum(row["value"] for row in rows) / len(rows), sum(row["n"] for row in rows)
        chance, trivial = (
            None if None in column else sum(column) / len(column)
            for column in zip(*((r["chance"], r["trivial"]) for r in rows), strict=True)
        )
        means.append(record(head, value, low, high, n, chance, trivial))
    return means


def write(scores: Scores, out: Path) -> None:
    """Writes `scores.jsonl` and `samples.jsonl`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    publish(out / "samples.jsonl", lambda aside: write_jsonl(aside, scores.samples))
    publish(out / "scores.jsonl", lambda aside: write_jsonl(aside, scores.records))
