"""A tiny base and the chat model that was made from it, as folders of transformers."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.train.data.chat.model_templates import text, tokenizer

HIDDEN, LAYERS = 16, 2
DOCUMENT_END, TURN_END = "<|endoftext|>", "<|im_end|>"
STEMS = (
    *("நீர்", "மலை", "வீடு", "பூ", "காடு", "வான்", "மரம்", "ஊர்", "நிலா"),
    *("கடல்", "மழை", "காற்று", "நாள்", "கல்", "மீன்", "பால்", "தேன்", "விதை"),
)


def make_pair(folder: Path, tied: bool = True, added: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """(base, chat model). added: tokens that only the chat model has.

    The base ends texts by one token and has no template; the chat model has SmolLM2's and ends turns by another.
    """
    base, chat = folder / "base", folder / "chat"
    of = tokenizer(None)
    of.eos_token = DOCUMENT_END
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
    }
    config = LlamaConfig(vocab_size=len(of), eos_token_id=of.eos_token_id, bos_token_id=None, **shape)
    model = LlamaForCausalLM(config)
    model.save_pretrained(base)
    of.save_pretrained(base)
    shifted(base, chat, seed=1)
    talks = tokenizer(text("smollm2"))
    talks.add_tokens(list(added))
    talks.save_pretrained(chat)
    model = AutoModelForCausalLM.from_pretrained(chat)
    if added:
        model.resize_token_embeddings(len(talks))
    model.config.eos_token_id = talks.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=talks.eos_token_id, repetition_penalty=1.1)
    model.save_pretrained(chat)
    return base, chat


def shifted(model: Path, out: Path, seed: int = 2, by: float = 0.01) -> Path:
    """A copy of a model whose weights were moved at random, as by a training."""
    shutil.copytree(model, out)
    draws = torch.Generator().manual_seed(seed)
    file = out / "model.safetensors"
    moved = {name: t + by * torch.randn(t.shape, generator=draws) for name, t in load_file(file).items()}
    save_file(moved, file, metadata={"format": "pt"})
    return out


def tamil(folder: Path, documents: int = 200) -> Path:
    """A file of made-up Tamil: seeded words of very different frequencies, a document a paragraph."""
    draws = random.Random(0)
    words = [a + b for a in STEMS for b in ("", "கள்", "இல்", "ஆன", "உம்", "ஆக")]

    def sentence() -> str:
        return " ".join(draws.choices(words, weights=range(1, len(words) + 1), k=8)) + "."

    texts = [" ".join(sentence() for _ in range(8)) for _ in range(documents)]
    path = folder / "tamil.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path
