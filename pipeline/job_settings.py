"""Settings of stages that the pipeline computes itself.

Settings decide the result and stand in the key; options (places, devices) do neither. A field that has a default was
added later: at its default it is not said, so that older keys stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from eval.prompting import ChatMode, Generation

Method = dict[str, Any]  # a complete recipe of a merge but for its checkpoints


@dataclass(frozen=True)
class Settings:
    """A stage's settings, or its options, by name."""

    def said(self) -> dict[str, Any]:
        """As a stage holds them; fields at their defaults are left out."""
        values = {part.name: (getattr(self, part.name), part.default) for part in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


@dataclass(frozen=True)
class LeakSettings(Settings):
    """The search in training text for the items that are scored.

    limit: items of a task; excerpt: characters of a held-out document; None: all. tasks: names of lm-eval
    tasks; inputs: checksums of the user's own task files.
    """

    split: str
    limit: int | None
    excerpt: int | None
    language: str
    tasks: Sequence[str]
    inputs: Sequence[str]


@dataclass(frozen=True)
class EvalSettings(LeakSettings):
    """The scoring of one checkpoint or merge.

    dtype: of its weights while it is scored. trained_length: tokens of the blocks that it was trained on.
    chat: none, auto or both (eval/prompting.py). system: message that chat prompts begin with. fewshot: examples in a
    prompt, or by task. generation: own or greedy. day: for today, where a template asks for the date.
    """

    dtype: str = "float32"
    trained_length: int | None = None
    chat: ChatMode = "none"
    system: str | None = None
    fewshot: int | Mapping[str, int] | None = None
    generation: Generation = "own"
    day: str | None = None


@dataclass(frozen=True)
class TuneSettings(Settings):
    """The choice among a method's recipes by their score on dev. metric: acc or bits_per_byte; else as EvalSettings."""

    tries: Sequence[Method]
    metric: str
    limit: int | None
    excerpt: int | None
    language: str
    seed: int
    dtype: str = "float32"
    trained_length: int | None = None
    chat: ChatMode = "none"
    system: str | None = None
    day: str | None = None


@dataclass(frozen=True)
class MergeSettings(Settings):
    """seed: of what a method draws. stated: the recipe, where no stage `tune` chose it."""

    seed: int
    stated: Method | None = None


@dataclass(frozen=True)
class ChooseSettings(Settings):
    """The choice of the model that is given away.

    gain: the measure to raise; keep: the one that may fall below the chat model's by `tolerance` at most. candidates:
    each with its name, method and the settings of its try. write: best, or the method whose best try is taken.
    """

    gain: str
    keep: str
    tolerance: float
    language: str
    candidates: Sequence[dict[str, Any]]
    write: str = "best"


@dataclass(frozen=True)
class AdaptedSettings(Settings):
    """dtype: of the weights in the folder."""

    dtype: str


@dataclass(frozen=True)
class AnswersSettings(Settings):
    """The free answers of one model.

    tokens: of an answer, at most. dtype: of the weights. questions: the user's; None: test items in the language, drawn
    by the seed. system: message that all chats begin with. generation: own or greedy (eval/prompting.py). day: for
    today, where a template asks for the date.
    """

    language: str
    seed: int
    tokens: int
    dtype: str
    questions: Sequence[str] | None = None
    system: str | None = None
    generation: Generation = "own"
    day: str | None = None


@dataclass(frozen=True)
class DeviceOptions(Settings):
    """device: cpu or cuda; threads: of a CPU."""

    device: str
    threads: int


@dataclass(frozen=True)
class AdaptedOptions(DeviceOptions):
    """spoken: the name of the language, as the card has it."""

    spoken: str


@dataclass(frozen=True)
class TuneOptions(DeviceOptions):
    """batch_tokens: in one forward pass, padding included. gpus: over which a model that is scored is spread."""

    batch_tokens: int
    gpus: int = field(default=1, kw_only=True)


@dataclass(frozen=True)
class EvalOptions(TuneOptions):
    """include_path: the folder of the user's own tasks, None: none."""

    include_path: str | None


@dataclass(frozen=True)
class LeakOptions(Settings):
    """Of the search for scored items in training text. workers: processes that read it."""

    include_path: str | None
    workers: int = 1
