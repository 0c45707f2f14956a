"""Tiny tokenizers of the kinds that open models have, trained on a few hundred lines of several scripts.

The kinds differ in what has broken pipelines: who adds the BOS token, whether there is one, byte-level or byte-fallback
pieces, a Unigram model, and hundreds of special tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from tests.toy_text import WORDS

SYLLABLES = {
    "tamil": ("நீ", "ர்", "ஆ", "று", "ம", "லை", "வி", "டு"),
    "tibetan": ("ཆུ་", "བོ", "འི་", "བོད་", "ཡིག་", "ས་", "གནམ་"),
    "cyrillic": ("ус", "гол", "ын", "нуур", "тал", "гэр", "мо"),
}
RESERVED = tuple(f"<|reserved_special_token_{number}|>" for number in range(250))  # as Llama 3 has
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def lines(seed: int, count: int) -> list[str]:
    """`count` lines of 24 words: half of them Latin letters, the others of three scripts."""
    rng = random.Random(seed)
    scripts = list(SYLLABLES.values())

    def word() -> str:
        return rng.choice(WORDS) if rng.random() < 0.5 else "".join(rng.choices(rng.choice(scripts), k=3))

    return [" ".join(word() for _ in range(24)) + "." for _ in range(count)]


def byte_level(eos: str, bos: str | None = None, adds_bos: bool = False, special: tuple[str, ...] = ()) -> Any:
    """Byte-level BPE, as Llama 3, Qwen and GPT-NeoX have it; BOS, if any, is added by its post-processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = list(dict.fromkeys(name for name in (bos, eos, *special) if name))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        lines(0, 200),
        trainers.BpeTrainer(
            vocab_size=400 + len(special), special_tokens=names, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if adds_bos:
        assert bos is not None
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos)


def byte_fallback(special: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges of a BPE over whole characters with bytes for the others, as SentencePiece trains it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token=special[-1], byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        lines(0, 200),
        trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *BYTES], limit_alphabet=60, show_progress=False),
    )
    model = json.loads(made.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def llama2() -> Any:
    """Llama 2's: bytes for unknown characters, and BOS added by the tokenizer's class."""
    from transformers import LlamaTokenizer

    vocabulary, merges = byte_fallback(("<s>", "</s>", "<unk>"))
    return LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def gemma() -> Any:
    """Gemma's: no prefix space, and BOS by `add_bos_token`."""
    from transformers import GemmaTokenizer

    vocabulary, merges = byte_fallback(("<pad>", "<eos>", "<bos>", "<mask>", "<unk>"))
    return GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def unigram() -> Any:
    """A Unigram model with byte fallback, BOS by its post-processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        lines(0, 200),
        trainers.UnigramTrainer(
            vocab_size=400, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS: dict[str, Callable[[], Any]] = {
    "llama2": llama2,
    "llama3": lambda: byte_level("<|end_of_text|>", "<|begin_of_text|>", adds_bos=True, special=RESERVED),
    "qwen": lambda: byte_level("<|endoftext|>", special=("<|im_start|>", "<|im_end|>")),
    "neox": lambda: byte_level("<|endoftext|>", "<|endoftext|>"),
    "gemma": gemma,
    "unigram": unigram,
}


@cache
def tokenizer(kind: str) -> Any:
    """The tokenizer of a kind, trained once a process."""
    return KINDS[kind]()
