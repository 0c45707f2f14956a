"""The table of architectures: a tiny random model of each, and the kind of tokenizer that such models have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.architectures.tokenizer_kinds import tokenizer

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # far from the usual 0.02, so that a wrong mask or position shows in the numbers
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
WINDOWED = {**HEADS, "sliding_window": 8}


@dataclass(frozen=True)
class Architecture:
    """A `model_type` of transformers with its config, and the kind of its tokenizer.

    rejected: part of the line that `check` prints; empty for one that every stage works with.
    xfail: why it fails at this commit.
    """

    model_type: str
    tokenizer: str
    config: dict[str, Any] = field(default_factory=dict)
    rejected: str = ""
    xfail: str = ""


RECURRENT = "keeps a state from token to token"
BLIND = "makes its attention mask without the positions"
ARCHITECTURES = {
    "llama-2": Architecture("llama", "llama2", GROUPED),
    "llama-3": Architecture("llama", "llama3", {**GROUPED, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }}),
    "qwen-2.5": Architecture("qwen2", "qwen", {**GROUPED, "tie_word_embeddings": True}),
    "qwen-3": Architecture("qwen3", "qwen", HEADS),
    "gemma-2": Architecture("gemma2", "gemma", {**WINDOWED, "query_pre_attn_scalar": 8}),
    "gemma-3": Architecture("gemma3_text", "gemma", {**WINDOWED, "query_pre_attn_scalar": 8}),
    "mistral": Architecture("mistral", "llama2", WINDOWED),
    "olmo-2": Architecture("olmo2", "neox", GROUPED),
    "phi-3": Architecture("phi3", "llama2", GROUPED),
    "smollm-3": Architecture("smollm3", "llama3", GROUPED),
    "apertus": Architecture("apertus", "unigram", GROUPED),
    "gpt-neox": Architecture("gpt_neox", "neox", SHAPE),
    "mixtral": Architecture("mixtral", "llama2", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen-3-moe": Architecture("qwen3_moe", "qwen", {
        **HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1,
    }),
    "gpt-2": Architecture("gpt2", "neox", {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2,
    }),
    "gemma-3-vision": Architecture("gemma3", "gemma", {
        "text_config": {**WINDOWED, "query_pre_attn_scalar": 8},
        "vision_config": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "image_size": 28, "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
    }),
    "mamba": Architecture("mamba", "neox", {
        "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.5,
    }, RECURRENT),
    "lfm-2": Architecture("lfm2", "llama3", {**GROUPED, "layer_types": ["conv", "full_attention"]}, RECURRENT),
    "qwen-3.5": Architecture("qwen3_5_text", "qwen", {
        **HEADS, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    }, RECURRENT),
    "gpt-oss": Architecture("gpt_oss", "llama3", {
        **WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    }, BLIND),
    "bloom": Architecture("bloom", "neox", {
        "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2,
    }, BLIND),
    "opt": Architecture("opt", "neox", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32,
        "max_position_embeddings": 128, "init_std": 0.2,
    }, BLIND),
    "falcon": Architecture("falcon", "neox", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2,
    }, BLIND),
    "xglm": Architecture("xglm", "unigram", {
        "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "init_std": 0.2,
    }, BLIND),
}  # fmt: skip
SUPPORTED = [name for name, architecture in ARCHITECTURES.items() if not architecture.rejected]
REJECTED = [name for name, architecture in ARCHITECTURES.items() if architecture.rejected]


def config_of(name: str) -> Any:
    """The transformers config of an architecture, its vocabulary and special tokens those of its tokenizer."""
    from transformers import AutoConfig

    kind = ARCHITECTURES[name]
    words = tokenizer(kind.tokenizer)
    special = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    settings: dict[str, Any] = {"vocab_size": len(words), "pad_token_id": None, **special, **kind.config}
    if "text_config" in kind.config:
        settings = {**kind.config, "text_config": {"vocab_size": len(words), **special, **kind.config["text_config"]}}
    return AutoConfig.for_model(kind.model_type, **settings)


def untrained(name: str, folder: Path) -> Path:
    """A folder with a model whose weights are drawn at random, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(name)).save_pretrained(folder)
    tokenizer(ARCHITECTURES[name].tokenizer).save_pretrained(folder)
    return folder
