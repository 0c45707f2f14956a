"""Tiny checkpoints: Llama-shaped folders of a few thousand parameters, written without transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merge.engine.outputs import Output
from merge.recipe import Recipe

HIDDEN, MIDDLE, VOCABULARY, LAYERS = 32, 48, 80, 3
Folders = Callable[..., dict[str, Path]]


def shapes(tied: bool = True) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        found |= {f"{at}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        found |= {f"{at}.mlp.{name}_proj.weight": (MIDDLE, HIDDEN) for name in ("gate", "up")}
        found |= {f"{at}.mlp.down_proj.weight": (HIDDEN, MIDDLE)}
        found |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return found if tied else found | {"lm_head.weight": (VOCABULARY, HIDDEN)}


def config(tied: bool = True) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
        "tie_word_embeddings": tied, "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "dtype": "float32",
    }  # fmt: skip


def tokenizer(words: int = VOCABULARY) -> dict[str, Any]:
    vocabulary = {f"w{i}": i for i in range(words)}
    return {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }


def save(folder: Path, tensors: dict[str, torch.Tensor], tied: bool = True, words: int | None = VOCABULARY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config(tied)))
    if words is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(words)))
    return folder


def weights(seed: int, dtype: torch.dtype = torch.float32, tied: bool = True) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes(tied).items()}


def moved(base: dict[str, torch.Tensor], seed: int, step: float = 0.02) -> dict[str, torch.Tensor]:
    """The base after a bit of training, as far as merging can tell."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (value.float() + step * torch.randn(value.shape, generator=draw)).to(value.dtype)
        for name, value in base.items()
    }


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """base, ct, sft: float32, tied."""
    return make_folders(tmp_path)


def make_folders(root: Path, dtype: torch.dtype = torch.float32, tied: bool = True) -> dict[str, Path]:
    base = weights(0, dtype, tied)
    return {
        "base": save(root / "base", base, tied),
        "ct": save(root / "ct", moved(base, 1), tied),
        "sft": save(root / "sft", moved(base, 2), tied),
    }


def recipe(
    folders: dict[str, Path], method: str, models: dict[str, dict[str, Any]] | None = None, **settings: Any
) -> Recipe:
    """A recipe over base, ct and sft; `models` adds per-model settings."""
    models = models or {"ct": {}, "sft": {}}
    data: dict[str, Any] = {
        "method": method,
        "models": {name: {"path": folders[name], **own} for name, own in models.items()},
    }
    if method != "linear":
        data["base"] = folders["base"]
    return Recipe.from_dict(data | settings)


class Keep:
    """A sink that keeps whole tensors, as the engine gives them."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        whole = self.tensors.setdefault(output.name, torch.full((output.numel,), math.nan, dtype=values.dtype))
        whole[start : start + len(values)] = values
