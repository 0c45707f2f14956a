"""Config -> plan: which stages a cell needs, their parents and their keys. Pure: no torch, no files.

A stage is a value. Its key is a hash of what decides its result (kind, settings, parents' keys) and of nothing else, so that the same work has the
same key in every cell of every sweep, and is done once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from common.units import format_tokens
from pipeline.config import Config, HubCorpus, Training
from pipeline.kinds import KINDS


@dataclass(frozen=True, eq=False)
class Stage:
    """A piece of work. `options` are needed to do it but do not change its result (paths, devices); they are not part of the key."""

    kind: str
    slug: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, Stage] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """12 hex digits that stand for the result."""
        return self._digest(self.settings)

    @cached_property
    def trajectory(self) -> str | None:
        """What CT stages share that differ in their budget only: from each, a larger one can continue. None for other kinds."""
        if self.kind != "ct":
            return None
        return self._digest({name: value for name, value in self.settings.items() if name != "tokens"})

    @property
    def given(self) -> bool:
        """Whether this is a checkpoint that the user gave, a folder or a model of the hub, and not something to make."""
        return self.kind == "model"

    def __str__(self) -> str:
        return f"{self.kind} {self.slug}"

    def _digest(self, settings: Mapping[str, Any]) -> str:
        parents = {role: parent.key for role, parent in self.parents.items()}
        revision = 0 if self.given else KINDS[self.kind].revision
        content = {"kind": self.kind, "revision": revision, "settings": settings, "parents": parents}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Inputs:
    """Checksums of what comes from outside: folders of checkpoints (or their commits on the hub), text and task files, the packages that hold text."""

    model: str | None = None
    ct: str | None = None
    sft_model: str | None = None
    corpus: tuple[str, ...] = ()
    sft: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One language x budget x seed: its stages in an order in which they can run, and what each method of the results stands for."""

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
    """The stages of a cell. Only what the wanted scores need is planned."""
    language, seed, budget = config.language.code, config.seed, format_tokens(config.ct.tokens)
    name = config.model.name
    compute = {"device": config.compute.device, "threads": config.compute.threads}
    training_options = {"compute": config.compute.model_dump(exclude={"first_guess", "keep_last_state"})}
    adapting = {"lora": config.train.lora.model_dump()} if config.train.lora else {}
    keeping = {"keep_last_state": config.compute.keep_last_state}
    rounding = (
        {"precision": config.compute.precision} if config.compute.precision != "fp32" else {}
    )  # fp32 is not said, so that keys stay

    split = {"dev": config.corpus.dev, "test": config.corpus.test, "seed": config.corpus.seed}
    content = {"source": config.corpus.source, "language": language, **split, "inputs": inputs.corpus}
    if isinstance(config.corpus, HubCorpus):
        text, english = config.corpus.text, config.corpus.english
        content |= {"text": text.content, "english": english.content}
        content |= {"text_bytes": config.corpus.text_bytes, "english_bytes": config.corpus.english_bytes}
        processes = {"workers": config.corpus.workers}
        places = {"text": text.model_dump(), "english": english.model_dump(), **processes}
    else:
        processes = {}
        places = {"path": config.corpus.path, "english_path": config.corpus.english_path}
    corpus = Stage("corpus", f"{language}-{config.corpus.source}", content, options=places)
    items = Stage(
        "items",
        language,
        {
            "language": language,
            "families": config.eval.families,
            "sft_items": 0 if config.sft.hub else config.sft.items,
            "eval_items": config.eval.items,
            "seed": config.corpus.seed,
            "inputs": () if config.sft.hub else inputs.sft,
        },
        {"corpus": corpus},
        {"sft_path": config.sft.path},
    )
    instructions = items
    if config.sft.hub:  # on their own, so that the English SFT of all languages is one
        taken = {"hub": config.sft.hub.content, "seed": config.corpus.seed, "inputs": inputs.sft}
        instructions = Stage("instructions", "en", taken, options={"hub": config.sft.hub.model_dump(), **processes})
    if config.model.path is not None:
        model = Stage("model", name, {"sha256": inputs.model}, options={"path": config.model.path})
    else:
        assert config.model.recipe is not None
        recipe = config.model.recipe.model_dump(exclude={"save_every_tokens"})
        save = {"save_every_tokens": config.model.recipe.save_every_tokens}
        model = Stage(
            "base", name, {**recipe, "language": language, **rounding}, {"corpus": corpus}, {**training_options, **save}
        )

    ct_blocks = Stage(
        "ct_blocks",
        f"{language}-{format_tokens(config.ct.schedule_tokens)}-s{seed}",
        {
            "language": language,
            "schedule_tokens": config.ct.schedule_tokens,
            "block_size": config.ct.block_size,
            "english_share": config.ct.english_share,
            "seed": seed,
        },
        {"corpus": corpus, "model": model},
        processes,
    )
    sft_blocks = Stage(
        "sft_blocks",
        f"en-s{seed}",
        {
            "tokens": config.sft.tokens,
            "block_size": config.sft.block_size,
            "replay_share": config.sft.replay_share,
            "seed": seed,
        },
        {
            "items": instructions,
            "model": model,
            **({} if config.sft.hub and not config.sft.replay_share else {"corpus": corpus}),
        },
        processes,
    )

    def train(kind: str, slug: str, section: Training, horizon: int, parents: Mapping[str, Stage]) -> Stage:
        names = (
            "tokens",
            "batch_tokens",
            "block_size",
            "learning_rate",
            "min_lr_ratio",
            "warmup_ratio",
            "weight_decay",
        )
        settings = {key: getattr(section, key) for key in names} | {
            "schedule_tokens": horizon,
            "seed": seed,
            **rounding,
            **adapting,
        }
        return Stage(
            kind,
            slug,
            settings,
            parents,
            {**training_options, "save_every_tokens": section.save_every_tokens, **keeping},
        )

    horizon = config.sft.schedule_tokens or config.sft.tokens
    ct = train(
        "ct",
        f"{language}-{budget}-s{seed}",
        config.ct,
        config.ct.schedule_tokens,
        {"model": model, "blocks": ct_blocks},
    )
    if config.ct_source:
        ct = Stage("model", f"ct-{language}", {"sha256": inputs.ct}, options={"path": config.ct_source})
    sft = train("sft", f"en-s{seed}", config.sft, horizon, {"model": model, "blocks": sft_blocks})
    if config.sft.source:
        sft = Stage("model", "sft-en", {"sha256": inputs.sft_model}, options={"path": config.sft.source})
    after = train(
        "sft", f"en-after-{language}-{budget}-s{seed}", config.sft, horizon, {"model": ct, "blocks": sft_blocks}
    )
    unmerged = {"base": model, "sft": sft, "ct": ct, "ct_then_sft": after}
    slugs = {
        "base": name,
        "sft": f"sft-s{seed}",
        "ct": f"ct-{budget}-s{seed}",
        "ct_then_sft": f"ct-then-sft-{budget}-s{seed}",
    }
    data = {"items": items, "corpus": corpus}
    scoring = {
        "split": "test",
        "limit": config.eval.limit,
        "excerpt": config.eval.excerpt,
        "language": language,
        "tasks": config.eval.tasks,
        "inputs": inputs.tasks,
    }
    scoring_options = {**compute, "batch_tokens": config.eval.batch_tokens, "include_path": config.eval.include_path}

    def score(slug: str, parents: Mapping[str, Stage]) -> Stage:
        return Stage("eval", f"{language}-{slug}", scoring, {**parents, **data}, scoring_options)

    checkpoints: dict[str, Stage] = {method: unmerged[method] for method in unmerged if method in config.eval.unmerged}
    evals: dict[str, Stage] = {
        method: score(slugs[method], {"checkpoint": stage}) for method, stage in checkpoints.items()
    }
    merges, written = {}, []
    of = {"model": model, "ct": ct, "sft": sft}
    for method, described in config.merge.methods.items():
        slug = f"{method}-{budget}-s{seed}"
        trying = {
            "tries": described.tries,
            "metric": config.merge.metric,
            "limit": config.eval.tune_limit,
            "excerpt": config.eval.excerpt,
            "language": language,
            "seed": seed,
        }
        options = {**compute, "batch_tokens": config.eval.batch_tokens}
        tune = Stage("tune", f"{language}-{slug}", trying, {**of, **data}, options)
        merges[method] = Stage("merge", f"{language}-{slug}", {"seed": seed}, {**of, "tune": tune}, compute)
        evals[method] = score(slug, {**of, "merge": merges[method]})
        if config.merge.write:
            written.append(Stage("weights", f"{language}-{slug}", {}, {**of, "merge": merges[method]}, compute))
    leaks = None
    if config.eval.leaks:
        asked = {name: scoring[name] for name in ("split", "limit", "excerpt", "language", "tasks", "inputs")}
        looked = {"items": items, "corpus": corpus, **({"instructions": instructions} if config.sft.hub else {})}
        leaks = Stage("leaks", language, asked, looked, {"include_path": config.eval.include_path, **processes})
    stages = in_order([*checkpoints.values(), *([leaks] if leaks else []), *evals.values(), *written])
    return Cell(config, stages, evals, merges, checkpoints, leaks)


def in_order(goals: Iterable[Stage]) -> tuple[Stage, ...]:
    """The goals and all that they need, each once, parents first; what was given is left out."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in found or stage.given:
            return
        for parent in stage.parents.values():
            visit(parent)
        found[stage.key] = stage

    for goal in goals:
        visit(goal)
    return tuple(found.values())


def merged(cells: Iterable[Cell]) -> tuple[Stage, ...]:
    """The plan of a sweep: the stages of all cells, each once, in the order in which the cells run."""
    return in_order(stage for cell in cells for stage in cell.stages)
