"""How a model generates: as its folder says, or greedy with nothing of the folder but its stops and its padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Generation = Literal["own", "greedy"]
MODES: tuple[Generation, ...] = ("own", "greedy")
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id")  # of generation_config.json, in greedy generation


def stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer: those of the model's generation config, and the tokenizer's EOS.

    lm-eval adds the latter to what a task stops at.
    """
    stated = model.generation_config.eos_token_id
    every = [*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id]
    return tuple(dict.fromkeys(int(token) for token in every if token is not None))


@contextmanager
def generating(model: Any, generation: Generation) -> Iterator[None]:
    """Let a model generate in one of the two ways within the context.

    own: by its generation config, whose repetition_penalty changes greedy output too; lm-eval sets do_sample itself.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    if generation == "greedy":
        model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in KEPT})
    try:
        yield
    finally:
        model.generation_config = own
