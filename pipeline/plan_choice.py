"""Config -> the stages that choose among tries on dev. Pure: no torch, no files.

A method of the results that is tuned has tries. They are scored on dev in the cells that `merge.choice` names, a `tune`
stage a cell, and the try that is best in the mean over these cells is taken in all cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from pipeline.config import Config
from pipeline.graph import Stage
from pipeline.job_settings import Method, TuneOptions, TuneSettings


def judged_on(config: Config) -> tuple[Config, ...]:
    """Return the cells on whose dev scores a cell's tries are chosen."""
    choice = config.merge.choice
    budgets = (config.ct.tokens,) if choice.budgets == "own" else choice.budgets
    seeds = (config.seed,) if choice.seeds == "own" else choice.seeds
    assert not isinstance(budgets, str) and not isinstance(seeds, str), "pipeline/sweep.py puts numbers for words"
    return tuple(config.at(tokens, seed) for tokens, seed in itertools.product(budgets, seeds))


def tune(
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


def roles(tunes: Iterable[Stage]) -> dict[str, Stage]:
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
