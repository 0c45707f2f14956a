"""Config -> plan: which stages a cell of a sweep needs, and what each method of the results stands for.

Pure: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from common.units import format_tokens
from pipeline.config import RESERVED, Config, Method
from pipeline.graph import Inputs, Stage, in_order
from pipeline.job_settings import (
    DeviceOptions,
    EvalOptions,
    EvalSettings,
    LeakOptions,
    LeakSettings,
    MergeSettings,
    TuneOptions,
    TuneSettings,
)
from pipeline.plan_training import Data, data_stages, trained_stages, workers


@dataclass(frozen=True)
class Cell:
    """One language x budget x seed.

    stages: in an order in which they can run. evals, merges, checkpoints: by method of the results.
    """

    config: Config
    stages: tuple[Stage, ...]
    evals: Mapping[str, Stage]
    merges: Mapping[str, Stage]
    checkpoints: Mapping[str, Stage]
    leaks: Stage | None = None

    @property
    def language(self) -> str:
        return self.config.language.code

    @property
    def ct_tokens(self) -> int:
        return self.config.ct.tokens

    @property
    def seed(self) -> int:
        return self.config.seed

    def __str__(self) -> str:
        return f"{self.language} {format_tokens(self.ct_tokens)} seed {self.seed}"


def plan_cell(config: Config, inputs: Inputs) -> Cell:
    """The stages of a cell. Only what the wanted scores need is planned.

    corpus ──┬── items ────────────── asked by tune, eval and leaks; learnt by SFT, unless the hub gives instructions
             │
             ├── base, or a model that was given
             │     │
             ├─────┼── ct_blocks ──── ct ──┬── ct_then_sft (with sft_blocks)
             │     │                       │
             └─────┼── sft_blocks ── sft ──┤
                   │                       │
                   └───────────────────────┴── tune ──── merge ──── weights

    eval: of base, sft, ct, ct_then_sft and every merge      leaks: of items in corpus and instructions
    """
    data = data_stages(config, inputs)
    trained = trained_stages(config, inputs, data)
    wanted: Sequence[str] = config.eval.unmerged
    checkpoints = {method: stage for method, stage in trained.items() if method in wanted}
    tunes = {
        method: _tune(config, method, described, data, trained) for method, described in config.merge.methods.items()
    }
    merges = {method: _merge("merge", config, method, trained, {"tune": tune}) for method, tune in tunes.items()}
    weights = [_merge("weights", config, method, trained, {"merge": merge}) for method, merge in merges.items()]
    evals = {
        method: _eval(config, inputs, method, data, {"checkpoint": stage}) for method, stage in checkpoints.items()
    }
    for method, merge in merges.items():
        evals[method] = _eval(config, inputs, method, data, {**_parents(trained), "merge": merge})
    leaks = _leaks(config, inputs, data) if config.eval.leaks else None
    goals = [
        *checkpoints.values(),
        *([leaks] if leaks else []),
        *evals.values(),
        *(weights if config.merge.write else []),
    ]
    return Cell(config, in_order(goals), evals, merges, checkpoints, leaks)


def _tune(config: Config, name: str, method: Method, data: Data, trained: Mapping[str, Stage]) -> Stage:
    asked = config.eval
    settings = TuneSettings(
        method.tries,
        config.merge.metric,
        asked.tune_limit,
        asked.excerpt,
        config.language.code,
        config.seed,
        asked.dtype,
        trained_length(config),
    )
    parents = {**_parents(trained), "items": data.items, "corpus": data.corpus}
    options = TuneOptions(config.compute.device, config.compute.threads, asked.batch_tokens)
    return Stage("tune", _slug(config, name), settings.said(), parents, options.said())


def _merge(
    kind: Literal["merge", "weights"],
    config: Config,
    name: str,
    trained: Mapping[str, Stage],
    made_from: Mapping[str, Stage],
) -> Stage:
    """A merge, or its checkpoint folder."""
    settings = MergeSettings(config.seed).said() if kind == "merge" else {}
    options = DeviceOptions(config.compute.device, config.compute.threads).said()
    return Stage(kind, _slug(config, name), settings, {**_parents(trained), **made_from}, options)


def _eval(config: Config, inputs: Inputs, name: str, data: Data, scored: Mapping[str, Stage]) -> Stage:
    asked_of_all = _asked(config, inputs).said()
    settings = EvalSettings(**asked_of_all, dtype=config.eval.dtype, trained_length=trained_length(config))
    compute, asked = config.compute, config.eval
    options = EvalOptions(compute.device, compute.threads, asked.batch_tokens, asked.include_path)
    parents = {**scored, "items": data.items, "corpus": data.corpus}
    return Stage("eval", _slug(config, name), settings.said(), parents, options.said())


def _leaks(config: Config, inputs: Inputs, data: Data) -> Stage:
    parents = {"items": data.items, "corpus": data.corpus}
    if data.instructions is not data.items:
        parents["instructions"] = data.instructions
    options = LeakOptions(config.eval.include_path, **workers(config))
    return Stage("leaks", config.language.code, _asked(config, inputs).said(), parents, options.said())


def _asked(config: Config, inputs: Inputs) -> LeakSettings:
    """The tasks that are scored."""
    asked = config.eval
    return LeakSettings(asked.split, asked.limit, asked.excerpt, config.language.code, asked.tasks, inputs.tasks)


def trained_length(config: Config) -> int:
    """Tokens of the shortest blocks that a cell's models were trained on: all of them know the positions in these."""
    sizes = [config.ct.block_size, config.sft.block_size]
    return min(sizes if config.model.recipe is None else [*sizes, config.model.recipe.block_size])


def _slug(config: Config, method: str) -> str:
    """The readable name of a method's stages."""
    language, seed, budget = config.language.code, f"s{config.seed}", format_tokens(config.ct.tokens)
    if method == "base":
        return f"{language}-{config.model.name}"
    if method == "sft":
        return f"{language}-sft-{seed}"
    return f"{language}-{method.replace('_', '-') if method in RESERVED else method}-{budget}-{seed}"


def _parents(trained: Mapping[str, Stage]) -> dict[str, Stage]:
    """What a merge is made of."""
    return {"model": trained["base"], "ct": trained["ct"], "sft": trained["sft"]}


def merged(cells: Iterable[Cell]) -> tuple[Stage, ...]:
    """The plan of a sweep: the stages of all cells, each once, in the order in which the cells run."""
    return in_order(stage for cell in cells for stage in cell.stages)
