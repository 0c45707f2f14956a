"""Continual training, SFT, and how their weights change."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from common.settings import Fraction, Positive, Tokens
from common.units import format_tokens
from common.validation import sentence
from pipeline.config.sources import CtSource, HubInstructions
from train.data.blocks import mixture
from train.data.chat_template import GIVEN, NONE
from train.settings import CtData, DecayShape, FrozenColumns, LoraSettings, MemorySaving, Optimization


class Training(Optimization):
    """What CT, SFT and the base model share."""

    save_every_tokens: Tokens
    dev_every_tokens: Tokens | None = None

    @model_validator(mode="after")
    def whole_blocks(self) -> Training:
        if self.batch_tokens % self.block_size:
            raise ValueError(f"batch_tokens={self.batch_tokens}: must be a multiple of block_size={self.block_size}.")
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens={self.tokens}: must be at least one step, batch_tokens={self.batch_tokens}.")
        return self


def source_name(value: str) -> str:
    """Return a name that files may have. Raises ValueError."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", value):
        raise ValueError("must consist of lower-case letters, digits, - and _. Rename the source, such as to parallel.")
    return value


SourceName = Annotated[str, AfterValidator(source_name)]


class Freezing(FrozenColumns):
    """What the baseline `sft_then_ct_frozen` freezes. grid: further fractions, the knob of its frontier."""

    grid: dict[Literal["fraction"], Annotated[list[float], Field(min_length=1)]] | None = None

    @property
    def trials(self) -> list[FrozenColumns]:
        """Return what each value of the knob freezes; the first is that of the section."""
        fractions = (self.grid or {}).get("fraction", [self.fraction])
        return [FrozenColumns(fraction=fraction, blocks=self.blocks) for fraction in fractions]

    @model_validator(mode="after")
    def grid_in_bounds(self) -> Freezing:
        fractions = (self.grid or {}).get("fraction", [self.fraction])
        if wrong := [value for value in fractions if not 0 < value <= 1]:
            raise ValueError(f"grid.fraction={wrong[0]:g}: must be above 0 and at most 1.")
        if fractions[0] != self.fraction:
            raise ValueError(f"grid.fraction: must begin with ct.freeze.fraction={self.fraction:g}.")
        if len(set(fractions)) < len(fractions):
            raise ValueError("grid.fraction: a value is listed twice. List each value once.")
        return self


class ContinualTraining(Training, CtData):
    """CT at a token budget, or on all of the language's text.

    freeze: what the baseline `sft_then_ct_frozen` freezes; other trainings freeze nothing.
    schedule: cosine, one for all budgets, which ends at `schedule_tokens`; or wsd (warm-up, stable, decay), in which
    each budget ends with a decay of its own, over `decay_fraction` of its tokens.
    decay_shape: average: the rate stays, and the published weights are the mean of `averaged_checkpoints` of the decay.
    sources: further texts by name, each with the fraction of the blocks that it has.
    whole_text: set where `tokens` is null. Then the blocks alone know the tokens; `tokens` and `schedule_tokens` hold
    an estimate, for plans (pipeline/resolve.py).
    """

    source: str | None
    whole_text: bool = False
    schedule: Literal["cosine", "wsd"]
    freeze: Freezing
    decay_fraction: Annotated[float, Field(gt=0, le=1)]
    decay_shape: DecayShape
    averaged_checkpoints: Positive
    schedule_tokens: Tokens
    sources: dict[SourceName, CtSource] | None = None

    @model_validator(mode="before")
    @classmethod
    def all_of_the_text(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("tokens", 0) is not None:
            return values
        if values.get("schedule") == "wsd":
            raise ValueError("tokens=null: a wsd schedule decays at the end of a stated budget; set ct.schedule=cosine")
        if values.get("source"):
            raise ValueError("tokens=null: ct.source was trained elsewhere; state the tokens that it was trained on")
        step = values.get("batch_tokens")  # an estimate takes its place
        return {**values, "whole_text": True, "tokens": step, "schedule_tokens": step}

    @property
    def fractions(self) -> dict[str, float]:
        """Return the fraction of the blocks that each further source has, by name."""
        return {name: source.fraction for name, source in sorted((self.sources or {}).items())}

    @property
    def language_fraction(self) -> float:
        """Return the fraction of the blocks that the language's text has."""
        return mixture(self.english_fraction, self.fractions)[0]

    @property
    def averages(self) -> bool:
        """Return whether the published weights are a mean of checkpoints."""
        return self.schedule == "wsd" and self.decay_shape == "average"

    @property
    def decay_tokens(self) -> int:
        """Return tokens of the decay of a wsd schedule: whole optimizer steps, at least one."""
        steps = self.tokens // self.batch_tokens
        return max(1, round(self.decay_fraction * steps)) * self.batch_tokens

    @model_validator(mode="after")
    def leaves_room_for_the_language(self) -> ContinualTraining:
        if self.sources and self.source:
            raise ValueError("sources: ct.source was trained elsewhere, so no text is read. Set ct.sources=null.")
        if round(self.language_fraction, 6) <= 0:
            parts = " + ".join(f"{value:g}" for value in (self.english_fraction, *self.fractions.values()))
            raise ValueError(
                f"sources: must leave blocks for the language, got ct.english_fraction and fractions of {parts} ="
                f" {1 - self.language_fraction:g}. Set smaller fractions, below 1 together."
            )
        return self

    @model_validator(mode="after")
    def within_schedule(self) -> ContinualTraining:
        if self.tokens > self.schedule_tokens:
            budget, horizon = format_tokens(self.tokens), format_tokens(self.schedule_tokens)
            raise ValueError(
                f"tokens={budget}: must be at most ct.schedule_tokens={horizon}, where the learning-rate schedule ends."
            )
        return self


def grid_product(grid: Mapping[Any, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a grid's values, the last key fastest; of an empty grid one that says nothing."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


TriedKey = Literal["learning_rate", "tokens", "min_lr_ratio", "warmup_ratio", "weight_decay"]


class Instructions(Training):
    """SFT. grid: trials of CT-then-SFT, selected on dev like the settings of merges."""

    source: str | None
    schedule_tokens: Tokens | None
    path: str | None
    hub: HubInstructions | None
    format: Literal["auto", "messages", "sharegpt", "alpaca", "dolly", "aya", "oasst", "prompts"]
    template: Annotated[str, Field(min_length=1)]
    template_args: dict[str, bool | int | float | str | None] | None
    system: str | None
    too_long: Literal["cut", "drop"]
    items: Positive
    questions: Positive
    replay_fraction: Fraction
    arm_replay_fraction: Fraction
    grid: dict[TriedKey, Annotated[list[Any], Field(min_length=1)]] | None

    @property
    def tries(self) -> list[dict[str, Any]]:
        """Return every setting that the grid spans, the first as the section is; one that says nothing without a
        grid.
        """
        return [
            {key: getattr(self.tried(settings), key) for key in settings} for settings in grid_product(self.grid or {})
        ]

    def tried(self, settings: Mapping[str, Any]) -> Instructions:
        """Return the section with the settings of a try. Raises ValidationError."""
        return Instructions.model_validate({**self.model_dump(), **settings, "grid": None})

    @model_validator(mode="after")
    def tries_in_bounds(self) -> Instructions:
        try:
            first, *_ = tries = self.tries
        except ValidationError as error:
            wrong = error.errors()[0]
            key = ".".join(map(str, wrong["loc"])) or "tokens"
            raise ValueError(f"grid.{key}={wrong['input']}: {sentence(wrong['msg'])}") from None
        for key, value in first.items():
            if value != getattr(self, key):
                raise ValueError(
                    f"grid.{key}: must begin with sft.{key}={getattr(self, key)}, the value without tuning."
                )
        if any(tries.count(settings) > 1 for settings in tries):
            raise ValueError("grid: a trial is listed twice. List each value once.")
        return self

    @model_validator(mode="after")
    def one_template(self) -> Instructions:
        if self.template == NONE:
            for key, default in (("template_args", None), ("system", None), ("too_long", "cut")):
                if (value := getattr(self, key)) != default:
                    raise ValueError(
                        f"{key}={value}: needs a chat template. Set sft.template to tokenizer, chatml or a .jinja file."
                    )
            if self.hub and not self.hub.columns:
                raise ValueError(
                    "hub.prompt=null: conversations need a chat template. Set sft.template to tokenizer, chatml or a"
                    " .jinja file, or name the columns of prompts and answers."
                )
        if taken := GIVEN & set(self.template_args or {}):
            raise ValueError(f"template_args.{min(taken)}: slackmerge sets this variable. Leave it out.")
        if self.hub and self.hub.columns and self.format not in ("auto", "prompts"):
            raise ValueError(
                f"format={self.format}: has its own columns. Set sft.hub.prompt=null and sft.hub.answer=null."
            )
        if self.format != "auto" and not self.path and not self.hub:
            raise ValueError(f"format={self.format}: needs sft.path or sft.hub. Set one of them.")
        return self

    @model_validator(mode="after")
    def one_source(self) -> Instructions:
        if self.path and self.hub:
            raise ValueError("hub: sft.path is set too. Set one of them.")
        if self.schedule_tokens is not None and self.schedule_tokens < self.tokens:
            raise ValueError(
                f"schedule_tokens={format_tokens(self.schedule_tokens)}:"
                f" must be at least sft.tokens={format_tokens(self.tokens)}."
            )
        return self


class Adaptation(MemorySaving):
    """Which weights are trained. lora_above: planned memory in GiB above which LoRA is used; None: always, if given."""

    lora: LoraSettings | None
    lora_above: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None

    @model_validator(mode="after")
    def has_lora_to_use(self) -> Adaptation:
        if self.lora_above is not None and self.lora is None:
            raise ValueError(f"lora_above={self.lora_above}: train.lora is null, so there is no LoRA; set train=auto")
        return self
