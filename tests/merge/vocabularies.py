"""Models whose vocabularies differ: other orders, other tokens, added ones, rows that only pad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.merge.conftest import HIDDEN, config, moved, weights

WORDS = [*(f"w{i}" for i in range(30)), "გამარჯობა", "ข้าว", "a b"]
VOCABULARIES: dict[str, list[str]] = {
    "base": WORDS,
    "ct": [*reversed(WORDS[5:]), "ქართული", "ภาษา", *WORDS[:3]],  # without w3 and w4
    "sft": [*WORDS[:20], "ภาษา", *WORDS[21:]],  # ภาษา for w20
}
ADDED = {"base": ["<s>"], "ct": ["<s>"], "sft": ["<s>", "<|im_start|>", "<|im_end|>"]}


def make(root: Path, padding: dict[str, int] | None = None, tied: bool = True, dtype: Any = torch.float32) -> Any:
    """base, ct and sft with tables of as many rows as they have tokens, and `padding` more."""
    folders, start = {}, weights(0, dtype, tied)
    for seed, (name, words) in enumerate(VOCABULARIES.items()):
        count = len(words) + len(ADDED[name]) + (padding or {}).get(name, 0)
        tensors = {key: value for key, value in (moved(start, seed) if seed else start).items()}
        draw = torch.Generator().manual_seed(10 + seed)
        for key in [key for key in tensors if key.endswith(("embed_tokens.weight", "lm_head.weight"))]:
            tensors[key] = torch.randn(count, HIDDEN, generator=draw).to(dtype)
        folders[name] = save(root / name, tensors, words, ADDED[name], config(tied) | {"vocab_size": count})
    return folders


def save(folder: Path, tensors: dict[str, torch.Tensor], words: list[str], added: list[str], config: Any) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    special = [
        {"id": len(words) + i, "content": token, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for i, token in enumerate(added)
    ]  # fmt: skip
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": words[0]}
    text = {"version": "1.0", "added_tokens": special, "model": model, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    (folder / "tokenizer.json").write_text(json.dumps(text))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def ids(folder: Path) -> dict[str, int]:
    """Numbers of tokens by the folder's tokenizer."""
    data = json.loads((folder / "tokenizer.json").read_text())
    return data["model"]["vocab"] | {token["content"]: token["id"] for token in data["added_tokens"]}
