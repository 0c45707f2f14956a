"""Quantized parents are refused as such; a config that tells of quantized weights where there are none is corrected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge
from tests.merge.conftest import recipe

NAME = "model.layers.1.mlp.down_proj"
BYTES, WORDS, HALVES = torch.ones(24, 32, dtype=torch.uint8), torch.ones(4, 8, dtype=torch.int32), torch.ones(4)
KINDS: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {
    "bitsandbytes": (
        {"load_in_4bit": True},
        {"weight": BYTES.view(-1, 1), "weight.absmax": HALVES, "weight.quant_state.bitsandbytes__nf4": BYTES[0]},
    ),
    "bitsandbytes, 8 bits": ({"load_in_8bit": True}, {"weight": BYTES.view(torch.int8), "SCB": HALVES}),
    "gptq": ({"bits": 4}, {"qweight": WORDS, "qzeros": WORDS, "scales": HALVES, "g_idx": WORDS[0]}),
    "awq": ({"bits": 4}, {"qweight": WORDS, "qzeros": WORDS, "scales": HALVES}),
    "compressed-tensors": ({"format": "pack-quantized"}, {"weight_packed": WORDS, "weight_scale": HALVES}),
    "fp8": ({}, {"weight": BYTES.view(torch.float8_e4m3fn), "weight_scale_inv": HALVES}),
    "mxfp4": ({}, {"gate_up_proj_blocks": BYTES, "gate_up_proj_scales": BYTES}),
    "hqq": ({}, {"W_q": BYTES, "meta": HALVES}),
    "aqlm": ({}, {"codes": BYTES.view(torch.int8), "codebooks": HALVES}),
    "quanto": ({}, {"weight._data": BYTES.view(torch.int8), "weight._scale": HALVES}),
    "eetq": ({}, {"weight": BYTES.view(torch.int8), "weight_scales": HALVES}),
    "unheard of": ({}, {"new": BYTES, "newer": HALVES}),
}


def quantize(folder: Path, kind: str, says: bool = True) -> None:
    settings, tensors = KINDS[kind]
    if says:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": kind.partition(",")[0], **settings}
        (folder / "config.json").write_text(json.dumps(config))
    kept = load_file(folder / "model.safetensors")
    del kept[f"{NAME}.weight"]
    new = {f"{NAME}.{key}": tensor.clone() for key, tensor in tensors.items()}
    save_file(kept | new, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("which", [["sft"], ["base", "ct", "sft"]])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_parents_are_refused_as_such(kind: str, which: list[str], folders: dict[str, Path]) -> None:
    for name in which:
        quantize(folders[name], kind)
    with pytest.raises(merge.BadInput, match=rf"{which[0]}\S* .*weights are quantized.*"):
        merge.check(recipe(folders, "ties"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unheard of"])
def test_tensors_tell_it_where_no_config_does(kind: str, folders: dict[str, Path]) -> None:
    quantize(folders["sft"], kind, says=False)
    with pytest.raises(merge.BadInput, match=r"sft.* weights are quantized"):
        merge.check(recipe(folders, "ties"))


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_a_quantizers_own_kind_in_a_bin_file(folders: dict[str, Path]) -> None:
    file = folders["sft"] / "model.safetensors"
    tensors: dict[str, Any] = load_file(file)
    tensors[f"{NAME}.weight"] = torch.quantize_per_tensor(tensors[f"{NAME}.weight"], 0.1, 0, torch.qint8)
    torch.save(tensors, folders["sft"] / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(merge.BadInput) as plain:
        merge.check(recipe(folders, "ties"))
    assert "quantized" not in str(plain.value).partition("tensor ")[0]
    config = json.loads((folders["sft"] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao"}
    (folders["sft"] / "config.json").write_text(json.dumps(config))
    with pytest.raises(merge.BadInput, match="torchao"):
        merge.check(recipe(folders, "ties"))


@pytest.mark.parametrize("who", ["base", "sft"])
def test_a_config_of_weights_that_are_no_longer_quantized(who: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """As a dequantized model, or one that QLoRA was merged into, is often saved: the result loads."""
    from transformers import AutoModelForCausalLM

    expected = merge.write(recipe(folders, "ties"), tmp_path / "plain")
    config = json.loads((folders[who] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folders[who] / "config.json").write_text(json.dumps(config))
    out = merge.write(recipe(folders, "ties"), tmp_path / "out")
    assert (out / "config.json").read_text() == (expected / "config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(out)
    in_memory = merge.load(recipe(folders, "ties"))
    assert not hasattr(in_memory.config, "quantization_config")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(in_memory.state_dict()[name], tensor)


def test_what_is_quantized_whenever_it_runs_is_refused(folders: dict[str, Path]) -> None:
    config = json.loads((folders["base"] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", "quantization_mode": "online"}
    (folders["base"] / "config.json").write_text(json.dumps(config))
    with pytest.raises(merge.BadInput, match=r"base/config.json: quantization_config: a model that quantizes"):
        merge.check(recipe(folders, "ties"))
