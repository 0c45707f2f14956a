"""A tiny random Llama with a byte-level BPE tokenizer trained on the spot, and items and documents in files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

TEXT = (
    "pachiyambi mulungu adalenga kumwamba ndi dziko lapansi koma linali lopanda kanthu mdima unali pamwamba pa nyanja "
    "mzimu unkayenda"
)
WORDS = TEXT.split()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator([" ".join(WORDS)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny_model(0)


def tiny_model(seed: int, **settings: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    # weights far from the usual 0.02, so that a wrong mask or position shows in the numbers
    config = LlamaConfig(**{**shape, "max_position_embeddings": 64, "initializer_range": 0.3, **settings})
    return LlamaForCausalLM(config).eval()


def make_items(family: str, language: str, count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    items = []
    for number in range(count):
        choices = rng.sample(WORDS, 4)
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 8))) + "\nAnswer:"
        answer, trivial = rng.randrange(4), rng.randrange(4)
        row = {"id": f"{family}.{number}", "prompt": prompt, "choices": choices, "answer": answer, "trivial": trivial}
        items.append({**row, "family": family, "language": language})
    return items


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(items, text): next and about in two languages, 12 items each; five documents, one of them too long."""
    items, text = tmp_path / "items", tmp_path / "text"
    for place, (family, language) in enumerate([("next", "nya"), ("about", "nya"), ("next", "en")]):
        write_jsonl(items / f"{family}_{language}.test.jsonl", make_items(family, language, 12, place))
    rng = random.Random(9)
    rows = [
        {"id": f"d{number}", "text": " ".join(rng.choices(WORDS, k=length))}
        for number, length in enumerate([3, 60, 1, 12, 7])
    ]
    write_jsonl(text / "nya.test.jsonl", rows)
    return items, text
