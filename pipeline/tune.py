"""The tune stage: score every trial of a method (a merge in memory or a checkpoint) on dev, and select the best.

Writes `tries.jsonl` (one line per trial: settings, score) and `choice.yml` (settings of the best trial; of equals, the
first).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import write_jsonl
from pipeline import choosing, stages
from pipeline.choosing import TRIES
from pipeline.execute import Job
from pipeline.job_settings import TuneOptions, TuneSettings
from pipeline.speaker import speaker, tokenizer_of

if TYPE_CHECKING:
    from eval.harness import Scores
    from eval.task_set import TaskSet
    from merge import Recipe


def tune(job: Job) -> None:
    """Score the tries that an earlier, interrupted run of this stage has not scored yet, and chooses among all."""
    import torch

    settings, options = TuneSettings(**job.settings), TuneOptions(**job.options)
    torch.set_num_threads(options.threads)
    metric, language, tries = settings.metric, settings.language, settings.tries
    dev = stages.task_set(job.folders["items"], job.folders["corpus"], "dev", settings.limit, settings.excerpt)
    tasks = of_language(dev, language, metric)
    journal = job.work / TRIES
    done = read_tries(journal)
    waiting = range(len(done), len(tries))
    scored = _trained(job, waiting, tasks) if "try-0" in job.stage.parents else _merged(job, waiting, tasks)
    for number, scores in zip(waiting, scored, strict=True):
        done.append({"settings": tries[number], "metric": metric, "score": score(scores, language, metric)})
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[-1]) + "\n")
        job.note, job.packed_rows = scores.note, scores.packed  # of the architecture: the same for every try
        job.on_try(len(done), len(tries))
    choosing.write(job.out, done)


def _merged(job: Job, waiting: Sequence[int], tasks: TaskSet) -> Iterator[Scores]:
    """Yield the scores of merges: each try is a recipe."""
    settings, options = TuneSettings(**job.settings), TuneOptions(**job.options)
    recipes = [stages.recipe_of(job, settings.tries[number], settings.seed) for number in waiting]
    folders = stages.checkpoints(job)
    named = recipes[0].tokenizer if recipes else None
    tokenizer = tokenizer_of(folders[speaker(folders, settings.chat, named)])
    yield from scores_of_merges(recipes, tokenizer, tasks, options.device, _how(settings, options))


def scores_of_merges(
    recipes: Sequence[Recipe], tokenizer: Any, tasks: TaskSet, device: str, how: Mapping[str, Any]
) -> Iterator[Scores]:
    """Yield the scores of merges in memory. A merged model is gone before the next is made: one at a time must fit."""
    import merge
    from eval import harness

    place = "cpu" if how.get("gpus", 1) > 1 else None  # it fits no single GPU
    for _, model in merge.load_many(recipes, device, place=place) if recipes else ():
        scores = harness.evaluate(model, tokenizer, tasks, **how)
        del model
        gc.collect()  # what a cycle of references would keep
        yield scores


def _trained(job: Job, waiting: Sequence[int], tasks: TaskSet) -> Iterator[Scores]:
    """Yield the scores of checkpoints: each try is a training."""
    from eval import harness

    how = _how(TuneSettings(**job.settings), TuneOptions(**job.options))
    for number in waiting:
        yield harness.evaluate_folder(job.checkpoint(f"try-{number}"), tasks, **how)


def _how(settings: TuneSettings, options: TuneOptions) -> Mapping[str, Any]:
    """Return what scoring needs besides the model and the tasks."""
    return {
        "batch_tokens": options.batch_tokens,
        "device": options.device,
        "dtype": settings.dtype,
        "trained_length": settings.trained_length,
        "gpus": options.gpus,
        "asking": stages.asking(settings),
    }


def of_language(tasks: TaskSet, language: str, metric: str) -> TaskSet:
    """Only the tasks that the choice looks at: items or running text, of one language."""
    chosen = {
        name: entry
        for name, entry in tasks.entries.items()
        if entry.language == language and (entry.primary == "bits_per_byte") == (metric == "bits_per_byte")
    }
    return replace(tasks, entries=chosen)


def score(scores: Scores, language: str, metric: str) -> float:
    """Return the language's mean accuracy, or its bits per byte."""
    wanted = "mean" if metric == "acc" else metric
    return next(
        row["value"]
        for row in scores.records
        if row["primary"] and row["language"] == language and wanted in (row["family"], row["metric"])
    )


def read_tries(journal: Path) -> list[dict[str, Any]]:
    """Return the tries of an interrupted run; a last line that was cut off is left out, and cut off for good."""
    if not journal.exists():
        return []
    rows = []
    for line in journal.read_bytes().splitlines():  # of bytes: text may contain other ends of lines
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    write_jsonl(journal, rows)
    return rows
