"""Config -> plan: which stages a cell of a sweep needs, and what each method of the results stands for.

    corpus ──┬── items ────────────── asked by tune, eval and leaks; learnt by SFT, unless the Hub gives instructions
             │
             ├── base, or a model that was given
             │     │
             ├─────┼── ct_blocks ──── ct ──┬── ct_then_sft (with sft_blocks), and the other baselines that are trained
             │     │                       │
             └─────┼── sft_blocks ── sft ──┤
                   │                       │
                   └───────────────────────┴── tune ──── merge ──── weights

    eval: of every checkpoint that is asked for, and every merge      leaks: of items in corpus and instructions
    adapting.py has the merges of experiment=adapt.

Pure: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from common.errors import BadInput
from merge.recipe import UNION_OF
from pipeline.baselines import BASELINES, FROZEN, VARIANT, depends_on_ct_budget
from pipeline.config import Config, Method
from pipeline.old_names import in_store
from pipeline.search import Bounds
from pipeline.stages import adapting
from pipeline.stages.adapting import AdaptStages
from pipeline.stages.data import Data, budget_name, plan_ct_blocks, plan_mixed_blocks, plan_sft_blocks
from pipeline.stages.merging import plan_merge, plan_weights
from pipeline.stages.scoring import plan_contamination, plan_eval
from pipeline.stages.stage import CALIBRATION, Inputs, Stage, in_order
from pipeline.stages.training import (
    given_model,
    plan_base,
    plan_chat_model,
    plan_ct,
    plan_mixed,
    plan_selected_sft,
    plan_sft,
)
from pipeline.stages.tuning import Trial, plan_tune, selection_stage, tuning_cells, tuning_parents
from pipeline.stages.vocabulary import plan_extended


@dataclass(frozen=True)
class KnobSetting:
    """One trial of a method and its scores. settings: what of its recipe or training the grid sets."""

    settings: Mapping[str, Any]
    dev: Stage
    test: Stage


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One language x budget x seed, of a regime where the sweep has several.

    stages: in an order in which they can run. evals, merges, checkpoints: by method of the results. chosen: by method
    that dev scores select, the stage with the selection. default_evals: evals of tuned methods by their first trial.
    frontier: of methods with a knob, all trials, none of which was selected. adapt: where one model is selected and
    written, what that takes; merges are then scored on dev alone. left_out: methods that have no use for the pair.
    variants: of each variant by name its config, and its CT with what that needs.
    """

    config: Config
    stages: tuple[Stage, ...]
    evals: Mapping[str, Stage] = field(default_factory=dict)
    merges: Mapping[str, Stage] = field(default_factory=dict)
    checkpoints: Mapping[str, Stage] = field(default_factory=dict)
    chosen: Mapping[str, Stage] = field(default_factory=dict)
    default_evals: Mapping[str, Stage] = field(default_factory=dict)
    contamination: Stage | None = None
    frontier: Mapping[str, Sequence[KnobSetting]] = field(default_factory=dict)
    adapt: AdaptStages | None = None
    left_out: tuple[str, ...] = ()
    variants: Mapping[str, Cell] = field(default_factory=dict)

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
        """Return the CT budget of a method of the results; 0 where none changes it."""
        method = self.config.merge.methods.get(name)
        return self.ct_tokens if depends_on_ct_budget(method.checkpoints if method else (name,)) else 0

    def __str__(self) -> str:
        regime = f"{self.config.regime} " if self.config.regime else ""
        return f"{regime}{self.language} {budget_name(self.config)} seed {self.seed}"


def plan_cell(config: Config, inputs: Inputs) -> Cell:
    """Return the stages of a cell. Only what the wanted scores need is planned."""
    requested, config = config, adapting.for_its_pair(config, inputs)
    planner = CellPlanner(config, inputs)
    methods = {} if config.adapt else config.merge.methods
    checkpoints = {name: planner.checkpoint(name) for name in BASELINES if name in config.eval.baselines}
    merges = {name: planner.merge(name) for name in methods}
    evals = {name: planner.eval_of_checkpoint(name) for name in checkpoints}
    evals |= {name: planner.eval_of_merge(name, merges[name], merges[name].slug) for name in methods}
    chosen = {name: selection_stage(merges[name]) for name in methods if planner.is_tuned(name)}
    if len(config.sft.tries) > 1 and "ct_then_sft" in checkpoints and not config.eval.frontier:
        chosen["ct_then_sft"] = selection_stage(checkpoints["ct_then_sft"])
    default_evals = plan_default_evals(planner, chosen) if config.eval.default_settings else {}
    frontier = plan_frontier(planner, evals) if config.scores_knobs else {}
    adapt = adapting.plan_adaptation(planner, evals, checkpoints) if config.adapt else None
    contamination = plan_contamination(config, inputs, planner.data) if config.eval.contamination else None
    goals = [
        *checkpoints.values(),
        *([contamination] if contamination else []),
        *evals.values(),
        *default_evals.values(),
        *(stage for points in frontier.values() for point in points for stage in (point.dev, point.test)),
        *(planner.weights(name) for name in methods if config.merge.write),
        *(adapt.goals if adapt else []),
    ]
    return Cell(
        config=config,
        stages=in_order(goals),
        evals=evals,
        merges=merges,
        checkpoints=checkpoints,
        chosen=chosen,
        default_evals=default_evals,
        contamination=contamination,
        frontier=frontier,
        adapt=adapt,
        left_out=tuple(name for name in requested.merge.methods if name not in config.merge.methods),
        variants={
            name: Cell(config=variant.config, stages=in_order([variant.ct]))
            for name, variant in planner.variants.items()
        },
    )


def plan_default_evals(planner: CellPlanner, chosen: Iterable[str]) -> dict[str, Stage]:
    """Plan the scores of every tuned method by the first of its trials, on test."""
    scored = {}
    for name in planner.config.merge.methods:
        if name in chosen and planner.config.merge.trials(name) > 1:
            merge = planner.trial(name, 0)
            scored[name] = planner.eval_of_merge(name, merge, f"{merge.slug}-untuned")
    if "ct_then_sft" in chosen:
        slug = f"{planner.slug('ct_then_sft', ('ct_then_sft',))}-untuned"
        scored["ct_then_sft"] = planner.eval(slug, {"checkpoint": planner.sft_trials[0]}, "ct_then_sft")
    return scored


def plan_frontier(planner: CellPlanner, evals: Mapping[str, Stage]) -> dict[str, list[KnobSetting]]:
    """Plan every trial of every method that has several, scored on dev and on test; the first is the method's own."""
    config = planner.config
    scored: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Stage]]]] = {}
    if "ct_then_sft" in evals and len(config.sft.tries) > 1:
        pairs = zip(config.sft.tries, planner.sft_trials, strict=True)
        scored["ct_then_sft"] = [(settings, {"checkpoint": stage}) for settings, stage in pairs]
    if FROZEN in evals and config.ct.freeze.grid:
        fractions = ({"fraction": frozen.fraction} for frozen in config.ct.freeze.trials)
        scored[FROZEN] = [
            (settings, {"checkpoint": stage}) for settings, stage in zip(fractions, planner.frozen_trials, strict=True)
        ]
    for name, method in config.merge.methods.items():
        if method.grid:
            knobs = [{key: recipe[key] for key in method.grid} for recipe in method.tries]
            scored[name] = [
                (knob, {**planner.parents(method), "merge": planner.trial(name, number)})
                for number, knob in enumerate(knobs)
            ]
    on_dev = planner.on_dev
    points: dict[str, list[KnobSetting]] = {}
    for name, trials in scored.items():
        for number, (knob, made) in enumerate(trials):
            slug = evals[name].slug + (f"-try-{number}" if number else "")
            test = planner.eval(slug, made, name) if number else evals[name]
            points.setdefault(name, []).append(KnobSetting(knob, on_dev.eval(f"{slug}-dev", made, name), test))
    return points


@dataclass(frozen=True, eq=False)
class CellPlanner:
    """Plans the stages of a cell, each when it is asked for.

    text: of the language, if it is planned already. variant, start: of a variant its name, and the base of its cell.
    """

    config: Config
    inputs: Inputs
    text: Data | None = None
    variant: str = ""
    start: Stage | None = None

    @cached_property
    def data(self) -> Data:
        return self.text or Data.of(self.config, self.inputs)

    @cached_property
    def tuning(self) -> list[CellPlanner]:
        """Return the planners of the cells on whose dev scores trials are selected."""
        here = self.config.ct.tokens, self.config.seed
        cells = tuning_cells(self.config)
        return [self if (c.ct.tokens, c.seed) == here else CellPlanner(c, self.inputs, self.data) for c in cells]

    @cached_property
    def on_dev(self) -> CellPlanner:
        """Return the same cell, scored on as many items of dev as tuning is."""
        dev = self.config.eval.model_copy(update={"split": "dev", "limit": self.config.eval.tune_limit})
        return CellPlanner(self.config.model_copy(update={"eval": dev}), self.inputs, self.data)

    @cached_property
    def variants(self) -> dict[str, CellPlanner]:
        """Return the planners of the variants; their CT starts from this cell's base."""
        inputs = self.inputs.variants
        return {
            name: CellPlanner(config, inputs.get(name, Inputs()), variant=name, start=self.base)
            for name, config in self.config.variant_configs.items()
        }

    # --- checkpoints; pipeline/baselines.py names them, and merge.checkpoints further ones ---

    def checkpoint(self, name: str) -> Stage:
        """Return the stage of a baseline, of a variant's CT, or of a checkpoint from outside that merges name."""
        baseline, _, variant = name.partition(VARIANT)
        if baseline in BASELINES:
            return BASELINES[baseline].plan(self.variants[variant] if variant else self)
        known, special = self.inputs.checkpoints.get(name), f"checkpoints.{name}" in self.inputs.special_tokens
        return given_model(name, self.config.merge.checkpoints[name], known, special)

    @cached_property
    def base(self) -> Stage:
        return self.start or plan_base(self.config, self.inputs, self.data)

    def extended(self, model: Stage) -> Stage:
        """Return a model with `model.new_tokens` for the language; the model itself if there are none."""
        return plan_extended(self.config, self.data, model) if self.config.model.new_tokens else model

    @cached_property
    def ct_base(self) -> Stage:
        """Return what CT starts from, and the tokenizer of everything that is trained on top of it."""
        return self.extended(self.base)

    @cached_property
    def ct(self) -> Stage:
        language, source = self.config.language.code, self.config.ct_source
        if source:
            return given_model(f"ct-{language}", source, self.inputs.ct, "ct" in self.inputs.special_tokens)
        text = language if self.variant in ("", language) else f"{language}-{self.variant}"
        return plan_ct(f"{text}-{self.budget}", self.config, self.ct_parents(self.ct_base))

    @cached_property
    def sft(self) -> Stage:
        if self.config.sft.source:
            return plan_chat_model(self.config, self.inputs)
        return plan_sft(f"en-s{self.config.seed}", self.config, self.sft_parents(self.base))

    @cached_property
    def ct_then_sft(self) -> Stage:
        """By the config's settings; with a grid by those that were best on dev, unless all of them are scored."""
        if len(self.sft_trials) == 1 or self.config.eval.frontier:
            return self.sft_trials[0]
        return plan_selected_sft(self.sft_trials, tuning_parents(cell.sft_tune for cell in self.tuning))

    @cached_property
    def sft_then_ct(self) -> Stage:
        """CT of this budget and these blocks on SFT: a trajectory of its own."""
        slug = f"{self.config.language.code}-after-en-{self.budget}"
        if self.config.model.new_tokens:
            return plan_ct(slug, self.config, self.ct_parents(self.extended(self.sft)))
        return plan_ct(slug, self.config, self.ct_parents(self.sft, self.base))

    @cached_property
    def frozen_trials(self) -> tuple[Stage, ...]:
        """CT on SFT, in which the columns of weights that its English instructions need most are frozen.

        By every fraction of `ct.freeze.grid`, the config's own first.
        """
        slug = f"{self.config.language.code}-after-en-frozen-{self.budget}"
        parents = self.ct_parents(self.sft, self.base) | {CALIBRATION: self.sft_parents(self.base)["blocks"]}
        return tuple(
            plan_ct(slug + (f"-try-{number}" if number else ""), self.config, parents, frozen)
            for number, frozen in enumerate(self.config.ct.freeze.trials)
        )

    @cached_property
    def mixed(self) -> Stage:
        """One training by the settings of CT, of the blocks of CT and of SFT spread evenly among each other."""
        slug = f"{self.config.language.code}-and-en-{self.budget}"
        model = self.ct_base
        of_ct, of_sft = self.ct_parents(model)["blocks"], self.sft_parents(model)["blocks"]
        blocks = plan_mixed_blocks(self.config, slug, of_ct, of_sft)
        return plan_mixed(slug, self.config, {"model": model, "blocks": blocks})

    @cached_property
    def sft_with_replay(self) -> Stage:
        """SFT on CT, with `sft.arm_replay_fraction` of running English among the instructions."""
        sft = self.config.sft.model_copy(update={"replay_fraction": self.config.sft.arm_replay_fraction})
        return self.sft_on_ct(self.config.model_copy(update={"sft": sft}), "en", "-replay")

    @cached_property
    def sft_in_language(self) -> Stage:
        """SFT on CT, on as many tokens of instructions in the language."""
        return self.sft_on_ct(self.config, self.config.language.code)

    @cached_property
    def merge_then_sft(self) -> Stage:
        """SFT on the weights of a merge."""
        assert self.config.merge.sft_after_merge is not None
        merged = self.weights(self.config.merge.sft_after_merge)
        tokenizer = merged if self.config.model.new_tokens else self.base
        parents = {"model": merged, "blocks": self.sft_parents(tokenizer)["blocks"]}
        return plan_sft(f"en-after-{merged.slug}", self.config, parents)

    @cached_property
    def sft_trials(self) -> tuple[Stage, ...]:
        """CT-then-SFT by every setting of its grid, the config's own first."""
        trials = enumerate(map(self.config.sft.tried, self.config.sft.tries))
        return tuple(
            self.sft_on_ct(self.config.model_copy(update={"sft": sft}), "en", f"-try-{number}" if number else "")
            for number, sft in trials
        )

    def sft_on_ct(self, config: Config, language: str, suffix: str = "") -> Stage:
        slug = f"{language}-after-{config.language.code}-{self.budget}{suffix}"
        blocks = plan_sft_blocks(config, self.data, self.ct_base, language)
        return plan_sft(slug, config, {"model": self.ct, "blocks": blocks})

    def ct_parents(self, model: Stage, tokenizer: Stage | None = None) -> dict[str, Stage]:
        return {"model": model, "blocks": plan_ct_blocks(self.config, self.data, tokenizer or model)}

    def sft_parents(self, model: Stage) -> dict[str, Stage]:
        return {"model": model, "blocks": plan_sft_blocks(self.config, self.data, model)}

    # --- trials and merges ---

    @cached_property
    def sft_tune(self) -> Stage:
        """The trials of CT-then-SFT, scored on dev."""
        trials = {f"try-{number}": stage for number, stage in enumerate(self.sft_trials)}
        slug = f"{self.config.language.code}-ct-then-sft-{self.budget}"
        return self.tune(slug, self.config.sft.tries, trials, "ct_then_sft")

    def tune(
        self,
        slug: str,
        trials: Sequence[Trial],
        made_of: Mapping[str, Stage],
        method: str,
        space: Mapping[str, Bounds] | None = None,
    ) -> Stage:
        scored = {**made_of, "items": self.data.items, "corpus": self.data.corpus}
        return replace(plan_tune(self.config, slug, trials, scored, self.inputs.asks_date, space), method=method)

    def is_tuned(self, name: str) -> bool:
        """Return whether dev scores select a trial of a merging method."""
        return self.config.merge.methods[name].needs_dev_scores and not self.config.eval.frontier

    def merge(self, name: str) -> Stage:
        """Return the merge of a method, by the trial that is selected or stated."""
        if not self.is_tuned(name):
            return self.trial(name, 0)
        tunes = tuning_parents(cell.tune_of(name) for cell in self.tuning)
        return self._merge(name, None, tunes)

    def trial(self, name: str, number: int) -> Stage:
        """Return the merge by the trial of this number."""
        merge = self._merge(name, self.recipes(self.config.merge.methods[name])[number], {})
        return replace(merge, slug=f"{merge.slug}-try-{number}") if number else merge

    def weights(self, name: str) -> Stage:
        """Return the merge of a method as a checkpoint folder."""
        parents = self.parents(self.config.merge.methods[name])
        return replace(plan_weights(self.config, self.merge(name), parents), method=name)

    def tune_of(self, name: str) -> Stage:
        """Return the stage that scores the trials of a merging method in this cell."""
        method = self.config.merge.methods[name]
        slug = self.slug(name, method.checkpoints)
        return self.tune(slug, self.recipes(method), self.parents(method), name, method.space)

    def _merge(self, name: str, stated: Trial | None, tunes: Mapping[str, Stage]) -> Stage:
        method = self.config.merge.methods[name]
        slug = self.slug(name, method.checkpoints)
        return replace(plan_merge(self.config, slug, stated, {**self.parents(method), **tunes}), method=name)

    def parents(self, method: Method) -> dict[str, Stage]:
        """Return what a merge is made of, by role: what task vectors are taken from, and the merged ones."""
        merged = dict(zip(method.of, map(self.checkpoint, method.checkpoints), strict=True))
        for role, stage in merged.items():
            same = next((other for other in merged if other != role and merged[other].key == stage.key), None)
            if same and VARIANT in role:
                raise BadInput(
                    f"variants.{role.partition(VARIANT)[2]}: nothing that CT depends on differs from {same}. Set"
                    " another language, text or training, or merge one of them."
                )
        return {"model": self.checkpoint(method.from_), **merged}

    def recipes(self, method: Method) -> list[Trial]:
        """Return the trials of a method, with what every merge takes whole from the chat model, and whose tokens."""
        whole = adapting.of_chat_model(self.config, method)
        return [{**recipe, **whole, **self.joined_tokens(method, whole.get("tokenizer"))} for recipe in method.tries]

    def joined_tokens(self, method: Method, first: str | None) -> dict[str, str]:
        """Return the key of a recipe that merges models of two vocabularies by token, if some have new tokens.

        first: the model whose tokenizer the merge continues; None: the base.
        """
        if not self.config.model.new_tokens or not depends_on_ct_budget(method.checkpoints):
            return {}
        return {"tokenizer": "union" if first in (None, "base") else f"{UNION_OF}{first}"}

    # --- scores ---

    def eval(self, slug: str, scored: Mapping[str, Stage], method: str) -> Stage:
        return replace(plan_eval(self.config, self.inputs, self.data, slug, scored), method=method)

    def eval_of_checkpoint(self, name: str) -> Stage:
        return self.eval(self.slug(name, (name,)), {"checkpoint": self.checkpoint(name)}, name)

    def eval_of_merge(self, name: str, merge: Stage, slug: str) -> Stage:
        return self.eval(slug, {**self.parents(self.config.merge.methods[name]), "merge": merge}, name)

    # --- names ---

    @property
    def budget(self) -> str:
        """Return what names a cell's trainings in their slugs."""
        return f"{budget_name(self.config)}-s{self.config.seed}"

    def slug(self, name: str, of: Sequence[str]) -> str:
        """Return the readable name of a method's stages. of: the checkpoints that it stands for or is merged from."""
        config = self.config
        if name == "base":
            return f"{config.language.code}-{config.model.name}"
        budget = f"-{budget_name(config)}" if depends_on_ct_budget(of) else ""
        known = in_store(name)
        known = known.replace("_", "-") if name in BASELINES else known
        return f"{config.language.code}-{known}{budget}-s{config.seed}"


def owners(cells: Sequence[Cell]) -> dict[str, Config]:
    """Return by stage the config that it is planned by: the first cell's that has it, or the variant's."""
    found: dict[str, Config] = {}
    for cell in reversed(cells):
        for each in (cell, *cell.variants.values()):
            found |= {stage.key: each.config for stage in each.stages}
    return found


def merged(cells: Iterable[Cell]) -> tuple[Stage, ...]:
    """Return the plan of a sweep: the stages of all cells, each once, in the order in which the cells run."""
    return in_order(stage for cell in cells for stage in cell.stages)
