"""Adapters that real peft made and saved, held against what peft makes of them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge.recipe import Recipe
from tests.merge.conftest import HIDDEN, LAYERS, MIDDLE, VOCABULARY, tokenizer
from tests.merge.test_adapters import on

pytest.importorskip("peft")
BOTH = ["q_proj", "embed_tokens", "lm_head"]
CASES: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head"]},
    "both": {"target_modules": BOTH, "rank_pattern": {"embed_tokens": 3}, "alpha_pattern": {"lm_head": 1}},
    "rslora": {"target_modules": BOTH, "use_rslora": True},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "saved_head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved_embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "linear": {"target_modules": "all-linear"},
}


def base(folder: Path, tied: bool, dtype: torch.dtype) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=MIDDLE, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=tied, attention_bias=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    return folder


def trained(base: Path, folder: Path, safe: bool = True, **config: Any) -> tuple[Path, Any]:
    """An adapter all of whose tensors are drawn, and the model with it as peft runs it."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"),
        LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **deepcopy(config)}),  # peft changes its lists
    )
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder, safe_serialization=safe)
    return folder, PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), folder).eval()


def written(recipe: Recipe, out: Path) -> dict[str, torch.Tensor]:
    return load_file(merge.write(recipe, out) / "model.safetensors")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_pefts(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Equal to merge_and_unload, but for one rounding of each to the base's dtype."""
    start = base(tmp_path / "base", False, dtype)
    adapter, model = trained(start, tmp_path / "lora", **CASES[case])
    found, before = written(on(start, adapter), tmp_path / "out"), load_file(start / "model.safetensors")
    theirs = model.merge_and_unload().state_dict()
    assert found.keys() == theirs.keys() and any(not torch.equal(found[name], before[name]) for name in found)
    for name, tensor in theirs.items():
        error = (found[name].float() - tensor.float()).abs()
        assert (error <= 2 * torch.finfo(dtype).eps * tensor.float().abs().clamp(min=0.01)).all(), (case, name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("case", ["embedding", "head", "saved_head", "saved_embedding", "rslora", "linear"])
def test_a_tied_model_answers_as_with_its_adapter(case: str, together: bool, tmp_path: Path) -> None:
    """As the adapter was trained: what changes one of embedding and head leaves the other, so they come apart.

    peft's merge_and_unload changes both.
    """
    from transformers import AutoModelForCausalLM

    start = base(tmp_path / "base", True, torch.float32)
    adapter, model = trained(start, tmp_path / "lora", ensure_weight_tying=together, **CASES[case])
    out = merge.write(on(start, adapter), tmp_path / "out")
    tokens = torch.arange(VOCABULARY).view(4, -1)
    with torch.no_grad():
        theirs, plain = (each(tokens).logits for each in (model, AutoModelForCausalLM.from_pretrained(start)))
        found = AutoModelForCausalLM.from_pretrained(out)(tokens).logits
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)
    alike = case == "linear" or together
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is alike


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_in_the_older_format(tmp_path: Path) -> None:
    start = base(tmp_path / "base", False, torch.float32)
    adapter, _ = trained(start, tmp_path / "lora", **CASES["both"])
    expected = written(on(start, adapter), tmp_path / "out")
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    found = written(on(start, adapter), tmp_path / "again")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_merged_is_refused(tmp_path: Path) -> None:
    start = base(tmp_path / "base", False, torch.float32)
    adapter, _ = trained(start, tmp_path / "lora", target_modules=["embed_tokens"], use_dora=True)
    with pytest.raises(merge.BadInput, match="use_dora is True, but module model.embed_tokens "):
        merge.check(on(start, adapter))
    adapter, _ = trained(start, tmp_path / "saved", **CASES["saved_head"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["lm_head", "score"]}))
    with pytest.raises(merge.BadInput, match="no module score, .*modules_to_save"):
        merge.check(on(start, adapter))
    (adapter / "adapter_model.bin").write_bytes(b"no pickle")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(merge.BadInput, match=r"adapter_model.bin: cannot be read"):
        merge.check(on(start, adapter))
