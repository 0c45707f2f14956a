"""Whether choices are packed is a fact of the architecture: every checkpoint of a table takes the same path."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from eval.packing import _check_on_small_model, is_packable
from tests.eval.conftest import tiny_model

CONFIGS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("llama", {}, True),
    "llama 8b": ("llama", {"hidden_size": 4096, "num_key_value_heads": 8, "vocab_size": 128_256}, True),
    "qwen3, 151 k tokens": ("qwen3", {"vocab_size": 151_936, "num_hidden_layers": 36}, True),
    "no window": ("mistral", {"sliding_window": None}, True),
    "a window": ("mistral", {"sliding_window": 4096}, False),
    "windows in some layers": ("gemma3_text", {}, False),
    "a local window": ("gpt_neo", {}, False),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, False),
    "a recurrent state": ("mamba", {}, False),
    "no 4-D mask": ("bloom", {}, False),
    "heads that fit no narrow model": ("deepseek_v3", {}, True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_full_attention_is_packed_and_nothing_else(name: str) -> None:
    family, settings, expected = CONFIGS[name]
    assert is_packable(AutoConfig.for_model(family, **settings)) is expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neither_weights_nor_rounding_play_a_part(dtype: torch.dtype) -> None:
    """bfloat16 changes the log-likelihoods of this model by more than the old tolerance allowed."""
    for seed in (0, 1):
        model = tiny_model(seed, num_hidden_layers=4, initializer_range=1.0).to(dtype)
        _check_on_small_model.cache_clear()
        assert is_packable(model.config)


def test_the_decision_leaves_random_numbers_alone() -> None:
    _check_on_small_model.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    is_packable(tiny_config())
    assert torch.equal(torch.rand(2), expected)


def tiny_config() -> Any:
    return AutoConfig.for_model("llama", hidden_size=32, intermediate_size=64, num_attention_heads=2)


def test_another_process_decides_alike() -> None:
    code = "from transformers import AutoConfig; from eval.packing import is_packable; "
    code += "print(is_packable(AutoConfig.for_model('llama')), is_packable(AutoConfig.for_model('mistral')))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "False"]
