"""The stage `tune`: score every trial of a method on dev, and select the best.

Trials are a grid's, or those that a search proposes one after another (pipeline/search.py).

The trials of a method are scored in the cells that `merge.choice` names, one `tune` stage per cell, and the trial with
the best mean over these cells is taken in all cells. A stage leaves `tries.jsonl` (one line per trial: settings, score)
and `choice.yml` (settings of the best trial; of equals, the first).
"""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.files import read_jsonl, write_jsonl
from eval.settings import ItemSettings, PromptSettings
from pipeline.config import Config
from pipeline.recipes import recipe_of
from pipeline.search import Bounds, Search, SpaceSearch
from pipeline.stages import scoring
from pipeline.stages.scoring import ScoreOptions
from pipeline.stages.stage import Stage, StageType

if TYPE_CHECKING:
    from eval.harness import Scores
    from eval.task_set import TaskSet
    from merge import Recipe
    from pipeline.execute import Job

Trial = dict[str, Any]  # settings of a training, or a recipe without its checkpoints
BEST = {"acc": max, "bits_per_byte": min}
TRIALS, SELECTED = "tries.jsonl", "choice.yml"


class TuneSettings(ItemSettings, PromptSettings):
    """The selection among a method's trials by their score on dev."""

    tries: tuple[Trial, ...]  # of a search the first alone
    metric: Literal["acc", "bits_per_byte"]
    language: str
    seed: int
    trained_length: int | None = None  # tokens per block in training: no item is scored beyond it
    day: str | None = None  # for today, where a template asks for the date
    search: SpaceSearch | None = None  # what proposes the other trials

    @property
    def trials(self) -> int:
        """Return the number of trials."""
        return self.search.trials if self.search else len(self.tries)


def tuning_cells(config: Config) -> tuple[Config, ...]:
    """Return the cells on whose dev scores a cell's trials are selected."""
    choice = config.merge.choice
    budgets = (config.ct.tokens,) if choice.budgets == "own" else choice.budgets
    seeds = (config.seed,) if choice.seeds == "own" else choice.seeds
    assert not isinstance(budgets, str) and not isinstance(seeds, str), "pipeline/sweep.py puts numbers for words"
    return tuple(config.at(tokens, seed) for tokens, seed in itertools.product(budgets, seeds))


def plan_tune(
    config: Config,
    slug: str,
    trials: Sequence[Trial],
    scored: Mapping[str, Stage],
    asks_date: bool = False,
    space: Mapping[str, Bounds] | None = None,
) -> Stage:
    """Plan the scoring of trials on dev in one cell, with the selection that this cell alone would make.

    scored: what the trials are made of, and the items and the corpus that they are scored on. A trial is scored once,
    plain or by its template. asks_date: whether a template writes the date. space: what a search varies in the trial.
    """
    search = config.merge.search
    settings = TuneSettings.pick(
        config.eval,
        config.merge,
        config,
        tries=tuple(trials),
        search=SpaceSearch.pick(search, space=dict(space)) if search and space else None,
        limit=config.eval.tune_limit,
        language=config.language.code,
        chat="none" if config.eval.chat == "none" else "auto",
        day=config.chat.date if asks_date else None,
    )
    return Stage(TUNE, slug, settings, scored, ScoreOptions.pick(config.eval, config.compute, include_path=None))


def tuning_parents(tunes: Iterable[Stage]) -> dict[str, Stage]:
    """Return the parents of what takes a selection: `tune`, or `tune-0`, `tune-1`, ... where several cells select."""
    unique = list({stage.key: stage for stage in tunes}.values())
    return {"tune": unique[0]} if len(unique) == 1 else {f"tune-{i}": stage for i, stage in enumerate(unique)}


def selection_stage(selected: Stage) -> Stage:
    """Return the stage with choice.yml and tries.jsonl: what scored the trials, or what took their mean."""
    return selected.parents.get("tune", selected)


def run_tune(job: Job[TuneSettings, ScoreOptions]) -> None:
    """Score the trials that an interrupted run of this stage has not scored yet, and select the best of all."""
    import torch

    settings, options = job.settings, job.options
    torch.set_num_threads(options.threads)
    metric, language = settings.metric, settings.language
    dev = scoring.task_set(job.folders["items"], job.folders["corpus"], "dev", settings.limit, settings.max_chars)
    tasks = selection_tasks(dev, language, metric)
    journal = job.work / TRIALS
    done = read_trials(journal)
    make_scores = _searched if settings.search else _trained if "try-0" in job.stage.parents else _merged
    for trial, scores in make_scores(job, done, tasks):
        done.append({"settings": trial, "metric": metric, "score": score(scores, language, metric)})
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[-1]) + "\n")
        job.note = scores.note
        job.facts |= scoring.packing_fact(scores)  # of the architecture: the same for every trial
        job.emit("progress", fraction=len(done) / settings.trials, text=f"{len(done)} of {settings.trials} tries")
    write_trials(job.out, done)


TUNE = StageType("tune", run_tune, 2, "score", 11, tracked=True)


Scored = Iterator[tuple[Trial, "Scores"]]
Done = Sequence[Mapping[str, Any]]


def _merged(job: Job[TuneSettings, ScoreOptions], done: Done, tasks: TaskSet) -> Scored:
    """Yield the trials that are not done with the scores of their merges: each trial is a recipe."""
    settings, pending = job.settings, job.settings.tries[len(done) :]
    recipes = [recipe_of(job, trial, settings.seed) for trial in pending]
    how = scoring.how(settings, job.options)
    yield from zip(pending, scores_of_merges(recipes, _tokenizer(job), tasks, job.options.device, how), strict=True)


def _searched(job: Job[TuneSettings, ScoreOptions], done: Done, tasks: TaskSet) -> Scored:
    """Yield what a search proposes with the scores of these merges; `done` gets each score before the next."""
    settings, search = job.settings, job.settings.search
    assert search is not None
    proposals = Search(search.space, search.sampler, settings.seed, BEST[settings.metric] is max)
    proposals.replay((trial["settings"], trial["score"]) for trial in done)
    tokenizer, how = _tokenizer(job), scoring.how(settings, job.options)
    try:
        while len(done) < search.trials:
            trial = {**settings.tries[0], **proposals.ask()}
            recipe = recipe_of(job, trial, settings.seed)
            (scores,) = scores_of_merges([recipe], tokenizer, tasks, job.options.device, how)
            gc.freeze()  # no model is alive, so what is stays out of the collection after the next trial
            yield trial, scores
            proposals.tell(done[-1]["score"])
    finally:
        gc.unfreeze()


def _tokenizer(job: Job[TuneSettings, ScoreOptions]) -> Any:
    """Return the tokenizer that all trials are scored with."""
    settings, folders = job.settings, scoring.checkpoints(job)
    recipe = recipe_of(job, settings.tries[0], settings.seed)
    speaker = scoring.speaker(folders, settings.chat, recipe.tokenizer)
    return scoring.tokenizer_of_merge(job, recipe, folders[speaker])


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


def _trained(job: Job[TuneSettings, ScoreOptions], done: Done, tasks: TaskSet) -> Scored:
    """Yield the trials that are not done with the scores of their checkpoints: each trial is a training."""
    from eval import harness

    for number, trial in list(enumerate(job.settings.tries))[len(done) :]:
        checkpoint = job.checkpoint(f"try-{number}")
        yield trial, harness.evaluate_folder(checkpoint, tasks, **scoring.how(job.settings, job.options))


def selection_tasks(tasks: TaskSet, language: str, metric: str) -> TaskSet:
    """Return only the tasks that a selection looks at: items or running text, of one language."""
    selected = {
        name: entry
        for name, entry in tasks.entries.items()
        if entry.language == language and (entry.primary == "bits_per_byte") == (metric == "bits_per_byte")
    }
    return replace(tasks, entries=selected)


def score(scores: Scores, language: str, metric: str) -> float:
    """Return the language's mean accuracy, or its bits per byte."""
    wanted = "mean" if metric == "acc" else metric
    return next(
        row["value"]
        for row in scores.records
        if row["primary"] and row["language"] == language and wanted in (row["family"], row["metric"])
    )


def selected_trial(job: Job[Any, Any]) -> tuple[int, Trial]:
    """Return (number, settings) of the trial that the parents `tune`, or `tune-0`, `tune-1`, ... of a stage select.

    If several select it, their mean is written among the stage's files, as a single one writes it among its own.
    """
    folders = [folder for role, folder in job.folders.items() if job.stage.parents[role].kind == TUNE.name]
    by_cell = [read_jsonl(folder / TRIALS) for folder in folders]
    means = [mean_trial(rows) for rows in zip(*by_cell, strict=True)]
    best = best_trial(means)
    if len(folders) > 1:
        write_trials(job.out, means)
    return means.index(best), best["settings"]


def best_trial(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the best trial; of equals, the first."""
    return BEST[trials[0]["metric"]](trials, key=lambda row: row["score"])


def mean_trial(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one trial as several cells scored it: its mean, and the score in each cell where they are several."""
    first, *others = rows
    if any(row["settings"] != first["settings"] for row in others):
        raise ValueError(f"cells scored other tries: {[row['settings'] for row in rows]}")
    scores = [row["score"] for row in rows]
    return {**first, "score": sum(scores) / len(scores), **({"scores": scores} if others else {})}


def write_trials(folder: Path, trials: Sequence[dict[str, Any]]) -> None:
    """Write the trials, one row per trial, and the settings of the best."""
    import yaml

    write_jsonl(folder / TRIALS, trials)
    (folder / SELECTED).write_text(yaml.safe_dump(best_trial(trials)["settings"], sort_keys=False), encoding="utf-8")


def read_trials(journal: Path) -> list[dict[str, Any]]:
    """Return the trials of an interrupted run; an incomplete last line is dropped, from the file too."""
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
