"""Messages -> the text that a model is given: by its tokenizer's chat template, on a stated day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.chat import DEFAULT_DAY, fixed_day
from common.errors import BadInput, line_of

Message = Mapping[str, str]  # role (system, user or assistant) and content


def template_of(tokenizer: Any) -> str | None:
    """Return the chat template of a tokenizer of transformers; None if it has none."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, Mapping):
        own = own.get("default")
    return own if isinstance(own, str) and own else None


def rendered(tokenizer: Any, messages: Sequence[Message], day: str = DEFAULT_DAY, *, generation: bool = True) -> str:
    """Render messages as text by the tokenizer's template.

    generation: with what comes before an answer that is to follow; else an answer continues the last
    message. Raises BadInput in one line, also for a template that takes no system message.
    """
    template = template_of(tokenizer)
    if template is None:
        raise BadInput(
            f"eval.chat: {_named(tokenizer)} has no chat template. Set eval.chat=none, or take a chat model."
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
        said = line_of(error)[:200] or type(error).__name__
        if messages[0]["role"] == "system" and _renders(tokenizer, messages[1:], day, generation):
            raise BadInput(
                f"eval.system: the chat template of {_named(tokenizer)} takes no system message ({said}), which"
                " eval.system or the description of a task would be. Leave both out, or set eval.chat=none."
            ) from None
        raise BadInput(
            f"eval.chat: the chat template of {_named(tokenizer)} fails ({said}). Set eval.chat=none, or repair it."
        ) from None


def check_rows(tokenizer: Any, rows: int) -> None:
    """Reject a template that writes tokens for which a model has no row. Raises BadInput. rows: of its embedding."""
    template = template_of(tokenizer) or ""
    added = tokenizer.added_tokens_decoder.items()
    missing = [token.content for number, token in added if number >= rows and token.content in template]
    if missing:
        raise BadInput(
            f"eval.chat: the model has {rows:,} rows of tokens, none for {missing[0]}, which the chat template of"
            f" {_named(tokenizer)} writes. Add `tokenizer: sft` to the recipe of a merge, or set eval.chat=none."
        )


def _renders(tokenizer: Any, messages: Sequence[Message], day: str, generation: bool) -> bool:
    try:
        rendered(tokenizer, messages, day, generation=generation)
    except BadInput:
        return False
    return True


def _named(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
