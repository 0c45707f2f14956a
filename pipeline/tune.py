"""The tune stage: every recipe of a method's grid is merged in memory and scored on dev, and the best is chosen.

Leaves `tries.jsonl` (a line a try: settings, score) and `choice.yml` (settings of the best try; of equals, the first).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import stages
from pipeline.execute import Job
from pipeline.job_settings import TuneOptions, TuneSettings

if TYPE_CHECKING:
    from eval.harness import Scores
    from eval.task_set import TaskSet

METRICS = {"acc": max, "bits_per_byte": min}
TRIES = "tries.jsonl"


def tune(job: Job) -> None:
    """Scores the tries that an earlier, interrupted run of this stage has not scored yet, and chooses among all."""
    import torch
    import yaml
    from transformers import AutoTokenizer

    import merge
    from eval import harness

    settings, options = TuneSettings(**job.settings), TuneOptions(**job.options)
    torch.set_num_threads(options.threads)
    metric, language, tries = settings.metric, settings.language, settings.tries
    dev = stages.task_set(job.folders["items"], job.folders["corpus"], "dev", settings.limit, settings.excerpt)
    tasks = of_language(dev, language, metric)
    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint("model"))
    journal = job.work / TRIES
    done = read_tries(journal)
    waiting = tries[len(done) :]
    recipes = [stages.recipe_of(job, method, settings.seed) for method in waiting]
    models = (model for _, model in merge.load_many(recipes, options.device)) if recipes else iter(())
    how: Mapping[str, Any] = {
        "batch_tokens": options.batch_tokens,
        "device": options.device,
        "dtype": settings.dtype,
        "trained_length": settings.trained_length,
    }
    for method, model in zip(waiting, models, strict=True):
        scores = harness.evaluate(model, tokenizer, tasks, **how)
        done.append({"settings": method, "metric": metric, "score": score(scores, language, metric)})
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[-1]) + "\n")
        job.on_try(len(done), len(tries))
    best = METRICS[metric](done, key=lambda row: row["score"])
    write_lines(job.out / TRIES, done)
    (job.out / "choice.yml").write_text(yaml.safe_dump(best["settings"], sort_keys=False), encoding="utf-8")


def of_language(tasks: TaskSet, language: str, metric: str) -> TaskSet:
    """Only the tasks that the choice looks at: items or running text, of one language."""
    chosen = {
        name: entry
        for name, entry in tasks.entries.items()
        if entry.language == language and (entry.primary == "bits_per_byte") == (metric == "bits_per_byte")
    }
    return replace(tasks, entries=chosen)


def score(scores: Scores, language: str, metric: str) -> float:
    """The language's mean accuracy, or its bits per byte."""
    wanted = "mean" if metric == "acc" else metric
    return next(
        row["value"]
        for row in scores.records
        if row["primary"] and row["language"] == language and wanted in (row["family"], row["metric"])
    )


def read_tries(journal: Path) -> list[dict[str, Any]]:
    """The tries of an interrupted run; a last line that was cut off is left out, and cut off for good."""
    if not journal.exists():
        return []
    rows = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    write_lines(journal, rows)
    return rows


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line of JSON a row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
