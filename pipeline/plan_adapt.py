"""Config -> the stages of an adaptation: every try on dev, the choice, the model that is given away, its scores.

    base ── ct ──┬── merges of CT and the chat model ──────────────────┐   each try: merge, eval on dev
    sft ─────────┘                                                     ├── choose ── adapted ── eval on test
     └───── sft_then_ct ── averaged back with the chat model ──────────┘

Pure: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from common.errors import BadInput
from pipeline.config import Config, Method
from pipeline.config.adapting import AUTO, BEST, TASKS
from pipeline.graph import Inputs, Stage
from pipeline.job_settings import AdaptedOptions, AdaptedSettings, AnswersSettings, ChooseSettings, TuneOptions
from pipeline.plan_training import base_model, chat_model

if TYPE_CHECKING:
    from pipeline.plan import Parts

SFT = "sft"  # the candidate that is the chat model itself: not to adapt can be the answer
ANSWER_TOKENS = 256  # of a free answer, at most; the page marks those that are cut
ADAPTED = "adapted"  # the model that was chosen, by the name that it has in results
ANSWERING = ("base", SFT, "ct", ADAPTED)  # whose answers stand side by side on the page


@dataclass(frozen=True)
class AdaptStages:
    """What an adaptation makes beside the checkpoints of its cell.

    dev: evals on dev by candidate, `sft` first. evals: on test, by the names of results and `adapted`. checkpoints: by
    the same names. answers: to questions, by the same names.
    """

    choose: Stage
    adapted: Stage
    dev: Mapping[str, Stage]
    evals: Mapping[str, Stage]
    checkpoints: Mapping[str, Stage]
    answers: Mapping[str, Stage] = field(default_factory=dict)

    @property
    def goals(self) -> list[Stage]:
        """What its plan has to hold."""
        return [self.adapted, *self.dev.values(), *self.evals.values(), *self.answers.values()]


def is_one_model(config: Config, inputs: Inputs) -> bool:
    """Whether the chat model is its own base."""
    return bool(config.sft.source) and base_model(config, inputs).key == chat_model(config, inputs).key


def needs_pair(method: Method) -> bool:
    """Whether a method moves along what SFT changed in the base: nothing, where one model is both."""
    return method.from_ == "base" and SFT in method.of


def for_its_pair(config: Config, inputs: Inputs) -> Config:
    """The config without the methods that one model as the pair has no use for. Raises BadInput where none is left."""
    if config.adapt is None or not is_one_model(config, inputs):
        return config
    kept = {name: method for name, method in config.merge.methods.items() if not needs_pair(method)}
    asked = [*config.merge.methods] if config.adapt.write == BEST else [config.adapt.write]
    if not any(name in kept for name in asked):
        raise BadInput(
            f"merge.methods.{asked[0]}: model.path and sft.source are one model, so SFT changed nothing that could be"
            f" merged, got {config.sft.source}. Name the base of the chat model, or take chat_linear or chat_slerp."
        )
    return config.model_copy(update={"merge": config.merge.model_copy(update={"methods": kept})})


def adapt_stages(parts: Parts, evals: Mapping[str, Stage], checkpoints: Mapping[str, Stage]) -> AdaptStages:
    """The stages of an adaptation. evals, checkpoints: on test, and what is scored there, by the names of results."""
    config = parts.config
    assert config.adapt is not None
    on_dev = config.eval.model_copy(update={"split": "dev", "limit": config.eval.tune_limit})
    dev_parts = replace(parts, config=config.model_copy(update={"eval": on_dev}))
    dev = {SFT: dev_parts.eval(f"{parts.slug(SFT, (SFT,))}-dev", {"checkpoint": parts.trained[SFT]})}
    merges: dict[str, Stage] = {}
    candidates = []
    for name, number, method in tries(config):
        candidate = f"{name}-try-{number}"
        merge = parts.merge(name, method, None, number)
        merges[candidate] = merge
        dev[candidate] = dev_parts.eval(f"{merge.slug}-dev", {**parts.models(method), "merge": merge})
        recipe = method.tries[number]
        knob = {key: recipe[key] for key in method.grid}
        candidates.append({"candidate": candidate, "method": name, "settings": knob})
    asked = config.adapt
    settings = ChooseSettings(
        measure(asked.gain, config), measure(asked.keep, config), asked.tolerance, config.language.code, candidates,
        asked.write,
    )  # fmt: skip
    slug = parts.slug(ADAPTED, ("ct",))
    choose = Stage("choose", slug, settings.said(), dev)
    options = AdaptedOptions(config.compute.device, config.compute.threads, config.language.name).said()
    sources = {role: stage for merge in merges.values() for role, stage in merge.parents.items()}
    parents = {"choose": choose, **sources, **_start(parts), **merges}
    adapted = Stage("adapted", slug, AdaptedSettings(asked.dtype).said(), parents, options)
    scored = parts.eval(slug, {"checkpoint": adapted, "otherwise": evals[SFT]})
    made = {**checkpoints, ADAPTED: adapted}
    return AdaptStages(choose, adapted, dev, {**evals, ADAPTED: scored}, made, answers(parts, made))


def answers(parts: Parts, checkpoints: Mapping[str, Stage]) -> dict[str, Stage]:
    """The free answers to the questions, by the names of results: those of the models that the page compares."""
    config, compute, asked = parts.config, parts.config.compute, parts.config.eval
    questions = parts.inputs.questions
    settings = AnswersSettings(
        config.language.code,
        config.seed,
        ANSWER_TOKENS,
        asked.dtype,
        questions,
        asked.system,
        asked.generation,
        config.chat.date if parts.inputs.asks_date else None,
    )
    options = TuneOptions(compute.device, compute.threads, asked.batch_tokens, gpus=asked.gpus)
    drawn_from = {} if questions else {"items": parts.data.items, "corpus": parts.data.corpus}
    stages: dict[str, Stage] = {}
    made = {**checkpoints, SFT: parts.trained[SFT]}
    for name in ANSWERING:
        if name in made:
            otherwise = {"otherwise": stages[SFT]} if name == ADAPTED else {}
            slug = parts.slug(name, ("ct" if name == ADAPTED else name,))
            parents = {"checkpoint": made[name], **otherwise, **drawn_from}
            stages[name] = Stage("answers", slug, settings.said(), parents, options.said())
    return stages


def _start(parts: Parts) -> dict[str, Stage]:
    """The pair, whatever a merge calls the model that it starts from."""
    return {"model": parts.trained["base"], SFT: parts.trained[SFT]}


def tries(config: Config) -> Iterator[tuple[str, int, Method]]:
    """(method, number of the try, its recipe) of all candidates that are merges."""
    for name, method in config.merge.methods.items():
        for number in range(len(method.tries)):
            yield name, number, method


def of_chat_model(config: Config, method: Method) -> dict[str, str]:
    """What merge.special_rows adds to a recipe: tokenizer and rows of the chat model, by its name in the recipe."""
    if config.merge.special_rows is None:
        return {}
    name = "base" if method.from_ == SFT else SFT if SFT in method.of else None
    return {"tokenizer": name, "special_rows": name} if name else {}


def measure(asked: str, config: Config) -> str:
    """The measure that `auto` stands for: the lm-eval tasks, acc or bits_per_byte."""
    if asked != AUTO:
        return asked
    if config.eval.tasks or config.eval.include_path:
        return TASKS
    return "acc" if config.eval.families else "bits_per_byte"
