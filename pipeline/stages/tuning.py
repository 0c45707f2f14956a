"""Config -> the stages that choose among tries on dev. Pure: no torch, no files.

A method of the results that is tuned has tries. They are scored on dev in the cells that `merge.choice` names, a `tune`
stage a cell, and the try that is best in the mean over these cells is taken in all cells.
"""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import read_jsonl, write_jsonl
from pipeline.config import Config
from pipeline.execute import Job
from pipeline.job_settings import Method, TuneOptions, TuneSettings
from pipeline.recipes import recipe_of
from pipeline.stages import scoring
from pipeline.stages.scoring import speaker, tokenizer_of
from pipeline.stages.stage import Stage

if TYPE_CHECKING:
    from eval.harness import Scores
    from eval.task_set import TaskSet
    from merge import Recipe


def tuning_cells(config: Config) -> tuple[Config, ...]:
    """Return the cells on whose dev scores a cell's tries are chosen."""
    choice = config.merge.choice
    budgets = (config.ct.tokens,) if choice.budgets == "own" else choice.budgets
    seeds = (config.seed,) if choice.seeds == "own" else choice.seeds
    assert not isinstance(budgets, str) and not isinstance(seeds, str), "pipeline/sweep.py puts numbers for words"
    return tuple(config.at(tokens, seed) for tokens, seed in itertools.product(budgets, seeds))


def plan_tune(
    config: Config, slug: str, tries: Sequence[Method], scored: Mapping[str, Stage], asks_date: bool = False
) -> Stage:
    """Return the scoring of tries on dev in one cell, with the choice that this cell alone would make.

    scored: what the tries are made of, and the items and the corpus that they are asked from. By a template tries are
    asked once, plain or by it. asks_date: whether a template writes the date.
    """
    asked = config.eval
    settings = TuneSettings(
        tries,
        config.merge.metric,
        asked.tune_limit,
        asked.excerpt,
        config.language.code,
        config.seed,
        asked.dtype,
        config.trained_length,
        "none" if asked.chat == "none" else "auto",
        asked.system,
        config.chat.date if asks_date else None,
    )
    options = TuneOptions(config.compute.device, config.compute.threads, asked.batch_tokens, gpus=asked.gpus)
    return Stage("tune", slug, settings.said(), scored, options.said())


def tuning_parents(tunes: Iterable[Stage]) -> dict[str, Stage]:
    """Return the stages as the parents of what takes their choice: `tune` where there is one, else `tune-0`, `tune-1`,
    ...
    """
    each = list({stage.key: stage for stage in tunes}.values())
    return {"tune": each[0]} if len(each) == 1 else {f"tune-{number}": stage for number, stage in enumerate(each)}


def selection_stage(chosen: Stage) -> Stage:
    """Return the stage that holds choice.yml and tries.jsonl: the one that scored the tries, or what took their
    mean.
    """
    return chosen.parents.get("tune", chosen)


METRICS = {"acc": max, "bits_per_byte": min}
TRIES, CHOICE = "tries.jsonl", "choice.yml"


def best_of(tries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the best try; of equals, the first."""
    return METRICS[tries[0]["metric"]](tries, key=lambda row: row["score"])


def selected_trial(job: Job) -> tuple[int, dict[str, Any]]:
    """Return (number, settings) of the trial that the parents `tune`, or `tune-0`, `tune-1`, ... of a stage select.

    If several select it, their mean is written among the stage's files, as a single one writes it among its own.
    """
    folders = [folder for role, folder in job.folders.items() if job.stage.parents[role].kind == "tune"]
    by_cell = [read_jsonl(folder / TRIES) for folder in folders]
    means = [mean_of(rows) for rows in zip(*by_cell, strict=True)]
    best = best_of(means)
    if len(folders) > 1:
        write_trials(job.out, means)
    return means.index(best), best["settings"]


def mean_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one try as several cells scored it: its mean, and what each cell gave where they are several."""
    first, *others = rows
    if any(row["settings"] != first["settings"] for row in others):
        raise ValueError(f"cells scored other tries: {[row['settings'] for row in rows]}")
    scores = [row["score"] for row in rows]
    return {**first, "score": sum(scores) / len(scores), **({"scores": scores} if others else {})}


def write_trials(folder: Path, tries: Sequence[dict[str, Any]]) -> None:
    """Write the tries, one row per try, and the settings of the best."""
    import yaml

    write_jsonl(folder / TRIES, tries)
    (folder / CHOICE).write_text(yaml.safe_dump(best_of(tries)["settings"], sort_keys=False), encoding="utf-8")


def run_tune(job: Job) -> None:
    """Score the tries that an earlier, interrupted run of this stage has not scored yet, and chooses among all."""
    import torch

    settings, options = TuneSettings(**job.settings), TuneOptions(**job.options)
    torch.set_num_threads(options.threads)
    metric, language, tries = settings.metric, settings.language, settings.tries
    dev = scoring.task_set(job.folders["items"], job.folders["corpus"], "dev", settings.limit, settings.excerpt)
    tasks = of_language(dev, language, metric)
    journal = job.work / TRIES
    done = read_tries(journal)
    waiting = range(len(done), len(tries))
    scored = _trained(job, waiting, tasks) if "try-0" in job.stage.parents else _merged(job, waiting, tasks)
    for number, scores in zip(waiting, scored, strict=True):
        done.append({"settings": tries[number], "metric": metric, "score": score(scores, language, metric)})
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[-1]) + "\n")
        job.note = scores.note
        job.facts |= scoring.packing_fact(scores)  # of the architecture: the same for every try
        job.emit("progress", fraction=len(done) / len(tries), text=f"{len(done)} of {len(tries)} tries")
    write_trials(job.out, done)


def _merged(job: Job, waiting: Sequence[int], tasks: TaskSet) -> Iterator[Scores]:
    """Yield the scores of merges: each try is a recipe."""
    settings, options = TuneSettings(**job.settings), TuneOptions(**job.options)
    recipes = [recipe_of(job, settings.tries[number], settings.seed) for number in waiting]
    folders = scoring.checkpoints(job)
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
        "prompting": scoring.prompting(settings),
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
