"""The settings of scoring, declared once: the config's section `eval`, the keys of stages and the code share them.

Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.settings import Positive, Settings
from eval.prompting import ChatMode, Generation

Shots = Annotated[int, Field(ge=0)]


class ItemSettings(Settings):
    """How much is scored."""

    limit: Positive | None  # items of a task; None: all
    # characters of a held-out document; None: all. Keys of stages have its old name.
    max_chars: Positive | None = Field(serialization_alias="excerpt")


class TaskSettings(ItemSettings):
    """What is scored."""

    split: Literal["dev", "test"]
    tasks: tuple[str, ...]  # names of lm-eval tasks


class PromptSettings(Settings):
    """How a model is prompted (eval/prompting.py)."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights while they are scored
    chat: ChatMode = "none"
    system: str | None = None  # message that all chat prompts begin with


class ScoringSettings(TaskSettings, PromptSettings):
    """What is scored, and how."""

    fewshot: Shots | dict[str, Shots] | None = None  # examples in a prompt, or by task
    generation: Generation = "own"
