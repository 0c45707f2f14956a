"""A tiny random model with a tokenizer that has a chat template, as objects and as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.architectures.tokenizer_kinds import byte_level
from tests.eval.conftest import tiny_model

MARKS = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)


def chat_tokenizer(template: str | None = CHATML) -> Any:
    """A byte-level tokenizer whose BOS is `<s>` and whose EOS is `<|im_end|>`."""
    made = byte_level("<|im_end|>", "<s>", special=MARKS)
    made.chat_template = template
    made.pad_token = "</s>"
    return made


def chat_model(tokenizer: Any, seed: int = 0, **settings: Any) -> Any:
    """A random Llama whose rows are the tokenizer's."""
    return tiny_model(seed, **{"vocab_size": len(tokenizer), "max_position_embeddings": 512, **settings})


def saved(folder: Path, template: str | None = CHATML, seed: int = 0, **settings: Any) -> Path:
    """A folder with both."""
    tokenizer = chat_tokenizer(template)
    chat_model(tokenizer, seed, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
