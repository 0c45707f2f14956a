"""peft's adapters on models whose names, heads and layers are not Llama's, compared with the adapter as it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge
from tests.merge.test_adapters import on
from tests.merge.test_adapters_of_peft import trained
from tests.merge.test_architectures import VOCABULARY, build

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
CASES: list[tuple[str, bool, list[str]]] = [
    ("BloomForCausalLM", True, ["word_embeddings"]),
    ("BloomForCausalLM", True, ["lm_head", "query_key_value"]),
    ("GPTNeoXForCausalLM", True, ["embed_in"]),
    ("GPTNeoXForCausalLM", False, ["embed_in", "lm_head", "dense"]),
    ("OPTForCausalLM", True, ["embed_tokens", "fc1"]),
    ("MambaForCausalLM", True, ["embeddings"]),
    ("BioGptForCausalLM", True, ["embed_tokens", "fc1"]),
    ("GPT2LMHeadModel", True, ["wte"]),
    ("GPT2LMHeadModel", True, ["c_attn", "c_proj", "c_fc"]),
    ("GPT2LMHeadModel", True, ["attn.c_proj", "lm_head"]),
    ("GPT2LMHeadModel", False, ["attn.c_proj"]),
    ("OpenAIGPTLMHeadModel", True, ["c_attn", "c_proj", "c_fc"]),
]


def agrees(start: Path, adapter: Path, model: Any, out: Path) -> None:
    """The merge answers as the adapter does, which changes the answers."""
    from transformers import AutoModelForCausalLM

    merged = merge.write(on(start, adapter), out)
    tokens = torch.arange(2, 2 + 4 * (VOCABULARY // 4 - 1)).view(4, -1)
    with torch.no_grad():
        theirs, plain = (each(tokens).logits for each in (model, AutoModelForCausalLM.from_pretrained(start)))
        found = AutoModelForCausalLM.from_pretrained(merged)(tokens).logits
    torch.testing.assert_close(found, theirs, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, plain, atol=0.05)


@pytest.mark.parametrize(("name", "tied", "modules"), CASES)
def test_the_merge_answers_as_the_adapter(name: str, tied: bool, modules: list[str], tmp_path: Path) -> None:
    build(name, tmp_path / "base", tied=tied)
    adapter, model = trained(tmp_path / "base", tmp_path / "lora", target_modules=modules)
    agrees(tmp_path / "base", adapter, model, tmp_path / "out")


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize(("name", "module"), [("GPT2LMHeadModel", "attn.c_proj"), ("GPTNeoXForCausalLM", "dense")])
def test_how_a_layer_lies_is_not_asked_of_the_config(name: str, module: str, says: bool, tmp_path: Path) -> None:
    """A square weight of GPT-2 is transposed and one of Pythia is not, as peft has it, which warns and goes on."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    build(name, tmp_path / "base")
    adapter, _ = trained(tmp_path / "base", tmp_path / "lora", target_modules=[module])
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fan_in_fan_out": says}))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter).eval()
    agrees(tmp_path / "base", adapter, model, tmp_path / "out")


def test_dora_on_a_transposed_layer_is_refused(tmp_path: Path) -> None:
    build("GPT2LMHeadModel", tmp_path / "base")
    adapter, _ = trained(tmp_path / "base", tmp_path / "lora", target_modules=["c_attn"], use_dora=True)
    with pytest.raises(merge.BadInput, match=r"h.0.attn.c_attn is stored transposed"):
        merge.check(on(tmp_path / "base", adapter))


def test_weights_are_those_of_peft(tmp_path: Path) -> None:
    """To the bits of float32, but for one rounding."""
    build("GPT2LMHeadModel", tmp_path / "base", tied=False)
    modules = ["c_attn", "c_proj", "c_fc", "wte", "lm_head"]
    adapter, model = trained(tmp_path / "base", tmp_path / "lora", target_modules=modules)
    found = load_file(merge.write(on(tmp_path / "base", adapter), tmp_path / "out") / "model.safetensors")
    theirs = model.merge_and_unload().state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prefixed", [True, False])
def test_on_a_base_without_the_prefix(prefixed: bool, tmp_path: Path) -> None:
    """The hub's gpt2, and an adapter whose modules are called as they are in memory."""
    build("GPT2LMHeadModel", tmp_path / "base")
    adapter, model = trained(tmp_path / "base", tmp_path / "lora", target_modules=["c_attn", "wte"])
    if not prefixed:
        rename(tmp_path / "base" / "model.safetensors", "transformer.", "")
    agrees(tmp_path / "base", adapter, model, tmp_path / "out")


@pytest.mark.parametrize("base_of_today", [True, False])
def test_an_adapter_of_another_version(base_of_today: bool, tmp_path: Path) -> None:
    """transformers 4 names Pythia's head embed_out, and so do its adapters."""
    build("GPTNeoXForCausalLM", tmp_path / "base", tied=False)
    adapter, model = trained(tmp_path / "base", tmp_path / "lora", target_modules=["lm_head", "dense"])
    rename(adapter / "adapter_model.safetensors", ".lm_head.", ".embed_out.")
    if base_of_today:
        rename(tmp_path / "base" / "model.safetensors", "embed_out.", "lm_head.")
    agrees(tmp_path / "base", adapter, model, tmp_path / "out")


def rename(file: Path, old: str, new: str) -> None:
    tensors = load_file(file)
    assert any(old in name for name in tensors)
    save_file({name.replace(old, new): tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
