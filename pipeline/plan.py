"""Config -> plan: which stages a cell of a sweep needs, and what each method of the results stands for.

Pure: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from common.units import format_tokens
from pipeline.arms import ARMS, with_ct_budgets
from pipeline.config import Config, Method
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

    def budget_of(self, name: str) -> int:
        """The CT budget of a method of the results; 0 where none changes it."""
        method = self.config.merge.methods.get(name)
        return self.ct_tokens if with_ct_budgets(method.of if method else (name,)) else 0

    def __str__(self) -> str:
        return f"{self.language} {format_tokens(self.ct_tokens)} seed {self.seed}"


def plan_cell(config: Config, inputs: Inputs) -> Cell:
    """The stages of a cell. Only what the wanted scores need is planned.

    corpus ──┬── items ────────────── asked by tune, eval and leaks; learnt by SFT, unless the hub gives instructions
             │
             ├── base, or a model that was given
             │     │
             ├─────┼── ct_blocks ──── ct ──┬── ct_then_sft (with sft_blocks), and what other arms train
             │     │                       │
             └─────┼── sft_blocks ── sft ──┤
                   │                       │
                   └───────────────────────┴── tune ──── merge ──── weights

    eval: of every checkpoint that is asked for, and every merge      leaks: of items in corpus and instructions
    """
    parts = _Parts.of(config, inputs)
    checkpoints = {name: parts.trained[name] for name in ARMS if name in config.eval.unmerged}
    methods = config.merge.methods
    tunes = {name: parts.tune(name, method) for name, method in methods.items()}
    merges = {name: parts.merge("merge", name, method, {"tune": tunes[name]}) for name, method in methods.items()}
    weights = [parts.merge("weights", name, method, {"merge": merges[name]}) for name, method in methods.items()]
    evals = {name: parts.eval(parts.slug(name, (name,)), {"checkpoint": stage}) for name, stage in checkpoints.items()}
    for name, method in methods.items():
        evals[name] = parts.eval(parts.slug(name, method.of), {**parts.models(method), "merge": merges[name]})
    leaks = _leaks(config, inputs, parts.data) if config.eval.leaks else None
    goals = [
        *checkpoints.values(),
        *([leaks] if leaks else []),
        *evals.values(),
        *(weights if config.merge.write else []),
    ]
    return Cell(config, in_order(goals), evals, merges, checkpoints, leaks)


@dataclass(frozen=True)
class _Parts:
    """What the stages of a cell are made from."""

    config: Config
    inputs: Inputs
    data: Data
    trained: Mapping[str, Stage]

    @staticmethod
    def of(config: Config, inputs: Inputs) -> _Parts:
        data = data_stages(config, inputs)
        merged = (name for method in config.merge.methods.values() for name in method.of)
        return _Parts(config, inputs, data, trained_stages(config, inputs, data, {*config.eval.unmerged, *merged}))

    def models(self, method: Method) -> dict[str, Stage]:
        """What a merge is made of, by role: the model that task vectors are taken from, and the merged ones."""
        return {"model": self.trained["base"], **{name: self.trained[name] for name in method.of}}

    def slug(self, name: str, of: Sequence[str]) -> str:
        """The readable name of a method's stages. of: the checkpoints that it stands for or is merged from."""
        config = self.config
        if name == "base":
            return f"{config.language.code}-{config.model.name}"
        budget = f"-{format_tokens(config.ct.tokens)}" if with_ct_budgets(of) else ""
        return f"{config.language.code}-{name.replace('_', '-') if name in ARMS else name}{budget}-s{config.seed}"

    def tune(self, name: str, method: Method) -> Stage:
        config, asked = self.config, self.config.eval
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
        parents = {**self.models(method), "items": self.data.items, "corpus": self.data.corpus}
        options = TuneOptions(config.compute.device, config.compute.threads, asked.batch_tokens)
        return Stage("tune", self.slug(name, method.of), settings.said(), parents, options.said())

    def merge(
        self, kind: Literal["merge", "weights"], name: str, method: Method, made_from: Mapping[str, Stage]
    ) -> Stage:
        """A merge, or its checkpoint folder."""
        config = self.config
        settings = MergeSettings(config.seed).said() if kind == "merge" else {}
        options = DeviceOptions(config.compute.device, config.compute.threads).said()
        return Stage(kind, self.slug(name, method.of), settings, {**self.models(method), **made_from}, options)

    def eval(self, slug: str, scored: Mapping[str, Stage]) -> Stage:
        config, compute, asked = self.config, self.config.compute, self.config.eval
        asked_of_all = _asked(config, self.inputs).said()
        settings = EvalSettings(**asked_of_all, dtype=asked.dtype, trained_length=trained_length(config))
        options = EvalOptions(compute.device, compute.threads, asked.batch_tokens, asked.include_path)
        parents = {**scored, "items": self.data.items, "corpus": self.data.corpus}
        return Stage("eval", slug, settings.said(), parents, options.said())


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


def merged(cells: Iterable[Cell]) -> tuple[Stage, ...]:
    """The plan of a sweep: the stages of all cells, each once, in the order in which the cells run."""
    return in_order(stage for cell in cells for stage in cell.stages)
