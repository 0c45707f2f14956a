"""Config -> plan: which stages a cell of a sweep needs, and what each method of the results stands for.

Pure: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline.baselines import BASELINES, depends_on_ct_budget
from pipeline.config import Config, Method
from pipeline.job_settings import (
    DeviceOptions,
    EvalOptions,
    EvalSettings,
    LeakOptions,
    LeakSettings,
    MergeSettings,
)
from pipeline.old_names import in_store
from pipeline.stages.adapting import AdaptStages, adapt_stages, for_its_pair, of_chat_model
from pipeline.stages.data import Data, budget_name, ct_blocks, data_stages, sft_blocks, workers
from pipeline.stages.stage import Inputs, Stage, in_order
from pipeline.stages.training import base_model, chat_model, continual_training, given_model, training
from pipeline.stages.tuning import plan_tune, selection_stage, tuning_cells, tuning_parents


@dataclass(frozen=True)
class KnobSetting:
    """One try of a method and its scores. settings: what of its recipe or training the grid sets."""

    settings: Mapping[str, Any]
    dev: Stage
    test: Stage


@dataclass(frozen=True)
class Cell:
    """One language x budget x seed, of a regime where the sweep has several.

    stages: in an order in which they can run. evals, merges, checkpoints: by method of the results. chosen: by method
    that was asked about on dev, the stage that holds the choice. untuned: evals of tuned methods by their first try.
    frontier: of methods with a knob, all tries, none of which was chosen. adapt: where one model is chosen and written,
    what that takes; merges are then scored on dev alone. left_out: methods of the config that have no use for its pair.
    """

    config: Config
    stages: tuple[Stage, ...]
    evals: Mapping[str, Stage]
    merges: Mapping[str, Stage]
    checkpoints: Mapping[str, Stage]
    chosen: Mapping[str, Stage]
    untuned: Mapping[str, Stage]
    leaks: Stage | None = None
    frontier: Mapping[str, Sequence[KnobSetting]] = field(default_factory=dict)
    adapt: AdaptStages | None = None
    left_out: tuple[str, ...] = ()

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
        return self.ct_tokens if depends_on_ct_budget(method.checkpoints if method else (name,)) else 0

    def __str__(self) -> str:
        regime = f"{self.config.regime} " if self.config.regime else ""
        return f"{regime}{self.language} {budget_name(self.config)} seed {self.seed}"


def plan_cell(config: Config, inputs: Inputs) -> Cell:
    """The stages of a cell. Only what the wanted scores need is planned.

    corpus ──┬── items ────────────── asked by tune, eval and leaks; learnt by SFT, unless the Hub gives instructions
             │
             ├── base, or a model that was given
             │     │
             ├─────┼── ct_blocks ──── ct ──┬── ct_then_sft (with sft_blocks), and what other arms train
             │     │                       │
             └─────┼── sft_blocks ── sft ──┤
                   │                       │
                   └───────────────────────┴── tune ──── merge ──── weights

    eval: of every checkpoint that is asked for, and every merge      leaks: of items in corpus and instructions
    plan_adapt.py has the merges of experiment=adapt.
    """
    requested, config = config, for_its_pair(config, inputs)
    data = data_stages(config, inputs)
    judges = [Start.of(cell, inputs, data) for cell in tuning_cells(config)]
    start = Start.of(config, inputs, data)
    parts = Parts.of(start, inputs, judges)
    scored_on_dev = [Parts.of(judge, inputs, judges) for judge in judges]
    methods = {} if config.adapt else config.merge.methods
    tunes = {
        name: tuning_parents(judge.tune(name, method) for judge in scored_on_dev)
        for name, method in methods.items()
        if method.asked_on_dev and not config.eval.frontier
    }
    merges = {name: parts.merge(name, method, tunes.get(name)) for name, method in methods.items()}
    weights = {name: parts.weights(name, method, merges[name]) for name, method in methods.items()}
    trained = dict(parts.trained)
    if config.merge.then_sft is not None and "merge_then_sft" in config.eval.unmerged:
        below = weights[config.merge.then_sft]
        trained["merge_then_sft"] = start.sft_on(below, below.slug)
    checkpoints = {name: trained[name] for name in BASELINES if name in config.eval.unmerged}
    evals = {name: parts.eval(parts.slug(name, (name,)), {"checkpoint": stage}) for name, stage in checkpoints.items()}
    for name, method in methods.items():
        evals[name] = parts.eval(parts.slug(name, method.checkpoints), {**parts.models(method), "merge": merges[name]})
    chosen = {name: selection_stage(merges[name]) for name in tunes}
    if len(config.sft.tries) > 1 and "ct_then_sft" in checkpoints and not config.eval.frontier:
        chosen["ct_then_sft"] = selection_stage(checkpoints["ct_then_sft"])
    untuned = _untuned(parts, start, chosen) if config.eval.untuned else {}
    frontier = _frontier(parts, start, evals) if config.scores_knobs else {}
    adapt = adapt_stages(parts, evals, checkpoints) if config.adapt else None
    leaks = _leaks(config, inputs, data) if config.eval.leaks else None
    goals = [
        *checkpoints.values(),
        *([leaks] if leaks else []),
        *evals.values(),
        *untuned.values(),
        *(stage for points in frontier.values() for point in points for stage in (point.dev, point.test)),
        *(weights.values() if config.merge.write else []),
        *(adapt.goals if adapt else []),
    ]
    left_out = tuple(name for name in requested.merge.methods if name not in config.merge.methods)
    return Cell(config, in_order(goals), evals, merges, checkpoints, chosen, untuned, leaks, frontier, adapt, left_out)


def _untuned(parts: Parts, start: Start, chosen: Iterable[str]) -> dict[str, Stage]:
    """The scores of every method that is tuned by the first of its tries, on test."""
    scored = {}
    for name, method in parts.config.merge.methods.items():
        if name in chosen and len(method.tries) > 1:
            merge = parts.merge(name, method, None)
            scored[name] = parts.eval(f"{merge.slug}-untuned", {**parts.models(method), "merge": merge})
    if "ct_then_sft" in chosen:
        slug = parts.slug("ct_then_sft", ("ct_then_sft",))
        scored["ct_then_sft"] = parts.eval(f"{slug}-untuned", {"checkpoint": start.sft_tries[0]})
    return scored


def _frontier(parts: Parts, start: Start, evals: Mapping[str, Stage]) -> dict[str, list[KnobSetting]]:
    """Every try of every method that has several, scored on dev and on test; the first is the method's own."""
    config = parts.config
    scored: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Stage]]]] = {}
    if "ct_then_sft" in evals and len(config.sft.tries) > 1:
        pairs = zip(config.sft.tries, start.sft_tries, strict=True)
        scored["ct_then_sft"] = [(settings, {"checkpoint": stage}) for settings, stage in pairs]
    for name, method in config.merge.methods.items():
        if method.grid:
            knobs = [{key: recipe[key] for key in method.grid} for recipe in method.tries]
            merges = [parts.merge(name, method, None, number) for number in range(len(knobs))]
            scored[name] = [
                (knob, {**parts.models(method), "merge": merge}) for knob, merge in zip(knobs, merges, strict=True)
            ]
    dev = config.eval.model_copy(update={"split": "dev", "limit": config.eval.tune_limit})
    on_dev = replace(parts, config=config.model_copy(update={"eval": dev}))
    points: dict[str, list[KnobSetting]] = {}
    for name, tries in scored.items():
        for number, (knob, made) in enumerate(tries):
            slug = evals[name].slug + (f"-try-{number}" if number else "")
            test = parts.eval(slug, made) if number else evals[name]
            points.setdefault(name, []).append(KnobSetting(knob, on_dev.eval(f"{slug}-dev", made), test))
    return points


@dataclass(frozen=True)
class Parts:
    """What the stages of a cell are made from."""

    config: Config
    inputs: Inputs
    data: Data
    trained: Mapping[str, Stage]

    @staticmethod
    def of(start: Start, inputs: Inputs, judges: Sequence[Start]) -> Parts:
        config = start.config
        merged = (name for method in config.merge.methods.values() for name in method.checkpoints)
        trained = trained_stages(start, judges, {*config.eval.unmerged, *merged})
        return Parts(config, inputs, start.data, trained)

    def models(self, method: Method) -> dict[str, Stage]:
        """What a merge is made of, by role: the model that task vectors are taken from, and the merged ones."""
        merged = [self.trained[name] for name in method.checkpoints]
        return {"model": self.trained[method.from_], **dict(zip(method.of, merged, strict=True))}

    def slug(self, name: str, of: Sequence[str]) -> str:
        """The readable name of a method's stages. of: the checkpoints that it stands for or is merged from."""
        config = self.config
        if name == "base":
            return f"{config.language.code}-{config.model.name}"
        budget = f"-{budget_name(config)}" if depends_on_ct_budget(of) else ""
        known = in_store(name)
        return (
            f"{config.language.code}-{known.replace('_', '-') if name in BASELINES else known}{budget}-s{config.seed}"
        )

    def tune(self, name: str, method: Method) -> Stage:
        scored = {**self.models(method), "items": self.data.items, "corpus": self.data.corpus}
        slug = self.slug(name, method.checkpoints)
        return plan_tune(self.config, slug, self.recipes(method), scored, self.inputs.asks_date)

    def recipes(self, method: Method) -> list[dict[str, Any]]:
        """The tries of a method, with what every merge takes whole from the chat model."""
        return [{**recipe, **of_chat_model(self.config, method)} for recipe in method.tries]

    def merge(self, name: str, method: Method, tunes: Mapping[str, Stage] | None, number: int = 0) -> Stage:
        """A merge by what these stages found on dev; by the try of this number, where nothing was asked there."""
        stated = None if tunes else self.recipes(method)[number]
        settings = MergeSettings(self.config.seed, stated)
        merge = self._merged("merge", name, method, settings.said(), tunes or {})
        return replace(merge, slug=f"{merge.slug}-try-{number}") if number else merge

    def weights(self, name: str, method: Method, merge: Stage) -> Stage:
        """A merge as a checkpoint folder."""
        return self._merged("weights", name, method, {}, {"merge": merge})

    def _merged(
        self, kind: str, name: str, method: Method, settings: Mapping[str, Any], made_from: Mapping[str, Stage]
    ) -> Stage:
        options = DeviceOptions(self.config.compute.device, self.config.compute.threads).said()
        return Stage(kind, self.slug(name, method.checkpoints), settings, {**self.models(method), **made_from}, options)

    def eval(self, slug: str, scored: Mapping[str, Stage]) -> Stage:
        config, compute, asked = self.config, self.config.compute, self.config.eval
        asked_of_all = _asked(config, self.inputs).said()
        settings = EvalSettings(
            **asked_of_all,
            dtype=asked.dtype,
            trained_length=config.trained_length,
            chat=asked.chat,
            system=asked.system,
            fewshot=asked.fewshot,
            generation=asked.generation,
            day=config.chat.date if self.inputs.asks_date else None,
        )
        options = EvalOptions(compute.device, compute.threads, asked.batch_tokens, asked.include_path, gpus=asked.gpus)
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


def merged(cells: Iterable[Cell]) -> tuple[Stage, ...]:
    """The plan of a sweep: the stages of all cells, each once, in the order in which the cells run."""
    return in_order(stage for cell in cells for stage in cell.stages)


@dataclass(frozen=True)
class Start:
    """What the arms of a cell are trained from.

    asks_date: whether a chat template that tries are scored by writes the date.
    """

    config: Config
    data: Data
    base: Stage
    ct: Stage
    sft: Stage
    asks_date: bool = False

    @staticmethod
    def of(config: Config, inputs: Inputs, data: Data) -> Start:
        language, base = config.language.code, base_model(config, inputs, data)
        if config.ct_source:
            ct = given_model(f"ct-{language}", config.ct_source, inputs.ct, "ct" in inputs.special_tokens)
        else:
            learnt = {"model": base, "blocks": ct_blocks(config, data, base)}
            ct = continual_training(f"{language}-{budget(config)}", config, learnt)
        if config.sft.source:
            sft = chat_model(config, inputs)
        else:
            learnt = {"model": base, "blocks": sft_blocks(config, data, base)}
            sft = training("sft", f"en-s{config.seed}", config, learnt)
        return Start(config, data, base, ct, sft, inputs.asks_date)

    @cached_property
    def sft_tries(self) -> tuple[Stage, ...]:
        """CT-then-SFT by every setting of its grid, the config's own first."""
        tries = enumerate(self.config.sft.tries)
        configs = [
            (n, self.config.model_copy(update={"sft": self.config.sft.tried(settings)})) for n, settings in tries
        ]
        return tuple(self._sft_on_ct(config, "en", f"-try-{n}" if n else "") for n, config in configs)

    @cached_property
    def sft_tune(self) -> Stage:
        """The tries of CT-then-SFT, scored on dev."""
        tried = {f"try-{number}": stage for number, stage in enumerate(self.sft_tries)}
        scored = {**tried, "items": self.data.items, "corpus": self.data.corpus}
        slug = f"{self.config.language.code}-ct-then-sft-{budget(self.config)}"
        return plan_tune(self.config, slug, self.config.sft.tries, scored, self.asks_date)

    @property
    def sft_in_the_language(self) -> Stage:
        """SFT on CT, on as many tokens of instructions in the language."""
        return self._sft_on_ct(self.config, self.config.language.code)

    @property
    def sft_with_replay(self) -> Stage:
        """SFT on CT, with `sft.arm_replay_share` of running English among the instructions."""
        sft = self.config.sft.model_copy(update={"replay_share": self.config.sft.arm_replay_share})
        return self._sft_on_ct(self.config.model_copy(update={"sft": sft}), "en", "-replay")

    @property
    def mixed(self) -> Stage:
        """One training by the settings of CT, of the blocks of CT and of SFT spread evenly among each other."""
        config, ct = self.config, self.config.ct
        total = ct.tokens + config.sft.tokens
        both = config.model_copy(update={"ct": ct.model_copy(update={"tokens": total, "schedule_tokens": total})})
        slug = f"{config.language.code}-and-en-{budget(config)}"
        of_ct, of_sft = ct_blocks(config, self.data, self.base), sft_blocks(config, self.data, self.base)
        sources = {"ct_blocks": of_ct, "sft_blocks": of_sft}
        blocks = Stage("mixed_blocks", slug, {"ct_tokens": ct.tokens, "tokens": total}, sources)
        # of kind sft, as no larger budget continues from it
        return replace(training("ct", slug, both, {"model": self.base, "blocks": blocks}), kind="sft")

    def sft_on(self, model: Stage, after: str) -> Stage:
        """English SFT on a checkpoint that is none of these."""
        learnt = {"model": model, "blocks": sft_blocks(self.config, self.data, self.base)}
        return training("sft", f"en-after-{after}", self.config, learnt)

    @property
    def ct_on_sft(self) -> Stage:
        """CT of this budget and these blocks on SFT: a trajectory of its own."""
        learnt = {"model": self.sft, "blocks": ct_blocks(self.config, self.data, self.base)}
        slug = f"{self.config.language.code}-after-en-{budget(self.config)}"
        return continual_training(slug, self.config, learnt)

    def _sft_on_ct(self, config: Config, language: str, more: str = "") -> Stage:
        learnt = {"model": self.ct, "blocks": sft_blocks(config, self.data, self.base, language)}
        return training("sft", f"{language}-after-{config.language.code}-{budget(config)}{more}", config, learnt)


def trained_stages(start: Start, judges: Sequence[Start], wanted: Collection[str]) -> dict[str, Stage]:
    """Base, CT and SFT, and the wanted ones of the other arms, by the names that they have in results.

    judges: the cells on whose dev scores tries are chosen.
    """
    further = {name: train(start, judges) for name, train in FURTHER.items() if name in wanted}
    return {"base": start.base, "sft": start.sft, "ct": start.ct, **further}


def _ct_then_sft(start: Start, judges: Sequence[Start]) -> Stage:
    """By the config's settings; with a grid by those that were best on dev, unless all of them are scored."""
    plain, *others = start.sft_tries
    if not others or start.config.eval.frontier:
        return plain
    blocks = {f"blocks-{number}": stage.parents["blocks"] for number, stage in enumerate(start.sft_tries)}
    settings = {**plain.settings, "trainings": [dict(stage.settings) for stage in start.sft_tries]}
    parents = {"model": start.ct, **blocks, **tuning_parents(judge.sft_tune for judge in judges)}
    return Stage("sft", f"{plain.slug}-chosen", settings, parents, plain.options)


FURTHER: Mapping[str, Callable[[Start, Sequence[Start]], Stage]] = {
    "ct_then_sft": _ct_then_sft,
    "sft_then_ct": lambda start, _: start.ct_on_sft,
    "mixed": lambda start, _: start.mixed,
    "sft_replay": lambda start, _: start.sft_with_replay,
    "target_sft": lambda start, _: start.sft_in_the_language,
}


def budget(config: Config) -> str:
    """What names a cell's trainings in their slugs."""
    return f"{budget_name(config)}-s{config.seed}"
