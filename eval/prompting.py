"""How a checkpoint is prompted, plain or by its chat template on a fixed day, and how it generates.

Bits per byte of text have no prompt, and so no template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from common.chat import DEFAULT_DAY, fixed_day
from common.errors import BadInput, line_of
from eval.task_set import BY_TEMPLATE

Message = Mapping[str, str]  # role (system, user or assistant) and content
ChatMode = Literal["none", "auto", "both"]
Generation = Literal["own", "greedy"]
MODES: tuple[Generation, ...] = ("own", "greedy")
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id")  # of generation_config.json, in greedy generation
CHAT = "chat"  # a field of records: whether a chat template was used; left out for chat=none


@dataclass(frozen=True)
class PromptMode:
    """One way in which all tasks are prompted. suffix: what their names end with in it."""

    chat: bool
    suffix: str = ""

    def lm_eval_arguments(self, prompting: Prompting) -> dict[str, Any]:
        """Return arguments of `lm_eval.evaluate`. Few-shot examples are separate turns, as on its command line."""
        if not self.chat:
            return {}
        return {
            "apply_chat_template": True,
            "fewshot_as_multiturn": True,
            "system_instruction": prompting.system,
        }


@dataclass(frozen=True)
class Prompting:
    """How a checkpoint is prompted.

    chat: none (plain), auto (by its template, if it has one) or both (plain too).
    system: message that all chat prompts begin with; None: only the template's, and a task's description.
    generation: own (by the checkpoint's generation config) or greedy. day: for today in templates that write it.
    """

    chat: ChatMode = "none"
    system: str | None = None
    generation: Generation = "own"
    day: str = DEFAULT_DAY

    def modes(self, tokenizer: Any) -> tuple[PromptMode, ...]:
        """Return the ways in which a checkpoint with this tokenizer is prompted."""
        if self.chat == "none" or chat_template_of(tokenizer) is None:
            return (PromptMode(False),)
        return (PromptMode(False), PromptMode(True, BY_TEMPLATE)) if self.chat == "both" else (PromptMode(True),)

    def describe(self, tokenizer: Any) -> str:
        """Describe how a checkpoint is prompted; empty for chat=none."""
        if self.chat == "none":
            return ""
        if chat_template_of(tokenizer) is None:
            return "plain prompts (no chat template)"
        return "prompts by the chat template" + (" and plain" if self.chat == "both" else "")

    def record_fields(self, mode: PromptMode) -> dict[str, bool]:
        """Return the field of records that states how a task was prompted."""
        return {} if self.chat == "none" else {CHAT: mode.chat}


PLAIN_PROMPTS = Prompting()


def is_text_task(task: Any) -> bool:
    """Return whether a task is running text without a prompt."""
    return bool(task.OUTPUT_TYPE == "loglikelihood_rolling")


def chat_template_of(tokenizer: Any) -> str | None:
    """Return the chat template of a tokenizer of transformers; None if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) and template else None


def render_chat(tokenizer: Any, messages: Sequence[Message], day: str = DEFAULT_DAY, *, generation: bool = True) -> str:
    """Render messages as text by the tokenizer's template.

    generation: with what comes before an answer that is to follow; else an answer continues the last message.
    Raises BadInput, also for a template that takes no system message.
    """
    template = chat_template_of(tokenizer)
    if template is None:
        raise BadInput(
            f"eval.chat: {_name_of(tokenizer)} has no chat template. Set eval.chat=none, or take a chat model."
        )
    try:
        with fixed_day(template, day):
            return str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=generation,
                    continue_final_message=not generation,
                )
            )
    except Exception as error:  # whatever the code in a template raises
        reason = line_of(error)[:200] or type(error).__name__
        if messages[0]["role"] == "system" and _renders(tokenizer, messages[1:], day, generation):
            raise BadInput(
                f"eval.system: the chat template of {_name_of(tokenizer)} takes no system message ({reason}), which"
                " eval.system or the description of a task would be. Leave both out, or set eval.chat=none."
            ) from None
        raise BadInput(
            f"eval.chat: the chat template of {_name_of(tokenizer)} fails ({reason}). Set eval.chat=none, or repair it."
        ) from None


def check_template_tokens(tokenizer: Any, rows: int) -> None:
    """Reject a template that writes tokens for which a model has no row. Raises BadInput. rows: of its embedding."""
    template = chat_template_of(tokenizer) or ""
    added = tokenizer.added_tokens_decoder.items()
    missing = [token.content for number, token in added if number >= rows and token.content in template]
    if missing:
        raise BadInput(
            f"eval.chat: the model has {rows:,} rows of tokens, none for {missing[0]}, which the chat template of"
            f" {_name_of(tokenizer)} writes. Add `tokenizer: sft` to the recipe of a merge, or set eval.chat=none."
        )


def _renders(tokenizer: Any, messages: Sequence[Message], day: str, generation: bool) -> bool:
    try:
        render_chat(tokenizer, messages, day, generation=generation)
    except BadInput:
        return False
    return True


def _name_of(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")


def stop_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer: those of the model's generation config, and the tokenizer's EOS.

    lm-eval adds the latter to the stops of a task.
    """
    config_ids = model.generation_config.eos_token_id
    ids = [*(config_ids if isinstance(config_ids, list) else [config_ids]), tokenizer.eos_token_id]
    return tuple(dict.fromkeys(int(token) for token in ids if token is not None))


@contextmanager
def generation_mode(model: Any, generation: Generation) -> Iterator[None]:
    """Let a model generate in one of the two ways within the context.

    own: by its generation config, whose repetition_penalty changes greedy output too; lm-eval sets do_sample itself.
    greedy: with nothing of the generation config but its special tokens.
    """
    from transformers import GenerationConfig

    config = model.generation_config
    if generation == "greedy":
        model.generation_config = GenerationConfig(**{name: getattr(config, name) for name in KEPT})
    try:
        yield
    finally:
        model.generation_config = config
