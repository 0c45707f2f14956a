"""How a checkpoint is prompted: plain or by its chat template, and how it generates.

Bits per byte of text have no prompt, and so no template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common.chat import DEFAULT_DAY
from eval.chat_prompts import template_of
from eval.generation import Generation
from eval.task_set import BY_TEMPLATE

ChatMode = Literal["none", "auto", "both"]
CHAT = "chat"  # a field of records: whether a task was asked by a chat template; unsaid where nobody wanted one


@dataclass(frozen=True)
class Mode:
    """One way in which all tasks are asked. suffix: what their names end with in it."""

    chat: bool
    suffix: str = ""

    def how(self, asking: Asking) -> dict[str, Any]:
        """Return the arguments of `lm_eval.evaluate`, whose examples are turns of their own as on its command line."""
        if not self.chat:
            return {}
        return {
            "apply_chat_template": True,
            "fewshot_as_multiturn": True,
            "system_instruction": asking.system,
        }


@dataclass(frozen=True)
class Asking:
    """How a checkpoint is prompted.

    chat: none (plain), auto (by its template, where it has one) or both (plain too).
    system: message that all chat prompts begin with; None: none but the template's own and a task's description.
    generation: own or greedy (eval/generation.py). day: for today in templates that write it.
    """

    chat: ChatMode = "none"
    system: str | None = None
    generation: Generation = "own"
    day: str = DEFAULT_DAY

    def modes(self, tokenizer: Any) -> tuple[Mode, ...]:
        """Return the ways in which a checkpoint with this tokenizer is prompted."""
        if self.chat == "none" or template_of(tokenizer) is None:
            return (Mode(False),)
        return (Mode(False), Mode(True, BY_TEMPLATE)) if self.chat == "both" else (Mode(True),)

    def described(self, tokenizer: Any) -> str:
        """Describe how a checkpoint is prompted; nothing if a template is not wanted."""
        if self.chat == "none":
            return ""
        if template_of(tokenizer) is None:
            return "plain prompts (no chat template)"
        return "prompts by the chat template" + (" and plain" if self.chat == "both" else "")

    def stated(self, mode: Mode) -> dict[str, bool]:
        """Return the field of records that states how a task with prompts was asked."""
        return {} if self.chat == "none" else {CHAT: mode.chat}


def reads_text(task: Any) -> bool:
    """Return whether a task is running text without a prompt."""
    return bool(task.OUTPUT_TYPE == "loglikelihood_rolling")


PLAIN = Asking()
