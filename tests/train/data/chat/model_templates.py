"""Templates of published models, and others that cannot work, on one small tokenizer that has all of their tokens."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

from tests.architectures.tokenizer_kinds import byte_level
from train.data.chat_template import Masking, template_of
from train.data.tokenization import load_library
from train.settings import ChatSettings

FOLDER = Path(__file__).parents[3] / "data" / "chat_templates"
EOS = {"cohere": "<|END_OF_TURN_TOKEN|>", "gemma": "<eos>", "gemma3": "<eos>", "llama3": "<|eot_id|>"}
EOS |= {"llama3_2": "<|eot_id|>", "phi3": "<|endoftext|>", "phi3_5": "<|endoftext|>", "vicuna": "</s>"}
MARKS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<bos>", "<eos>", "[INST]", "[/INST]"),
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>"),
)
# Ours, in the manner of published ones that no package here carries.
MISTRAL = (
    "{{ bos_token }}{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if system and loop.last else '') + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
OLMO = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)
HARMONY = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant<|channel|>final<|message|>' + message['content'] }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '<|message|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + END }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
OWN = {"mistral": MISTRAL, "olmo": OLMO, "harmony": HARMONY, "vicuna": VICUNA.replace("END", "eos_token")}


def text(name: str) -> str:
    """The text of a template by the name of its family."""
    return OWN.get(name) or (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def _tokenizer() -> Any:
    return byte_level("<|im_end|>", "<s>", special=MARKS)


def tokenizer(template: str | None, name: str = "") -> Any:
    """The small tokenizer with a template, and the end token that models of this family have."""
    made = copy.deepcopy(_tokenizer())
    made.chat_template = template
    made.eos_token = EOS.get(name, "<|im_end|>")
    return made


def masking(name: str, size: int = 4096, cut: bool = True, **settings: Any) -> tuple[Masking, Any]:
    """How conversations become examples by the template of a family, and its tokenizer."""
    of = tokenizer(text(name), name)
    template = template_of(of, ChatSettings(template="tokenizer", **settings), f"{name}: its tokenizer")
    return Masking(template, settings.get("system"), size, cut), of


def trained(name: str, *talk: str, system: str | None = None, **how: Any) -> tuple[list[tuple[str, list[str]]], Any]:
    """A conversation of questions and answers in turn as examples: the whole text and the texts with loss; counts."""
    made, of = masking(name, **how)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(talk)]
    return shown(made, of, [{"messages": messages}])


def shown(made: Masking, of: Any, rows: list[dict[str, Any]]) -> tuple[list[tuple[str, list[str]]], Any]:
    """Rows of instructions as examples: their whole texts, and those with loss; and the counts."""
    import numpy as np

    examples, counts = made.examples(rows, load_library(of.backend_tokenizer.to_str()), np.uint32)
    texts = []
    for ids, loss in examples:
        runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(loss)) + 1)
        spans = [of.decode(ids[run].tolist()) for run in runs if loss[run[0]]]
        texts.append((of.decode(ids.tolist()), spans))
    return texts, counts
