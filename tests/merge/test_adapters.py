"""LoRA adapters as peft reads them, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge
from merge.checkpoints import adapter
from merge.checkpoints.adapter import LoraConfig, rank_and_scale
from merge.recipe import Recipe
from tests.merge.conftest import HIDDEN, MIDDLE, make_folders
from tests.merge.test_engine import merged
from tests.messages import assert_one_line, assert_wording

MODULE, RANK = "model.layers.1.mlp.down_proj", 4


def lora(folder: Path, factors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """An adapter of one module; `factors` replaces A and B."""
    draw = torch.Generator().manual_seed(0)
    drawn = {"A": torch.randn(RANK, MIDDLE, generator=draw), "B": torch.randn(HIDDEN, RANK, generator=draw)}
    folder.mkdir()
    named = {f"base_model.model.{MODULE}.lora_{side}.weight": x for side, x in (drawn | (factors or {})).items()}
    save_file(named, folder / "adapter_model.safetensors")
    text = json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8} | config)
    (folder / "adapter_config.json").write_text(text)
    return folder


def on(folder: Path, adapter: Path) -> Recipe:
    return Recipe.from_dict(
        {"method": "linear", "models": {"lora": {"path": folder, "adapter": adapter}}, "exact": False}
    )


def test_on_a_bin_base(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = lora(tmp_path / "lora")
    expected = merged(on(folders["ct"], adapter))
    file = folders["ct"] / "model.safetensors"
    torch.save(load_file(file), folders["ct"] / "pytorch_model.bin")
    file.unlink()
    found = merged(on(folders["ct"], adapter))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_adapter_that_overflows_its_base_is_named(tmp_path: Path) -> None:
    folders = make_folders(tmp_path, torch.float16)
    adapter = lora(tmp_path / "lora", lora_alpha=1e9)
    with pytest.raises(merge.BadInput, match=rf"tensor {MODULE}.weight overflows in F16 where its adapter is added"):
        merge.write(on(folders["ct"], adapter), tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        {"alpha_pattern": {"down_proj": 2, "mlp.down_proj": 16}},
        {"alpha_pattern": {"mlp.down_proj": 16, "down_proj": 2}, "init_lora_weights": "gaussian"},
        {"alpha_pattern": {"up_proj": 2}, "r": 8, "rank_pattern": {"down_proj": RANK}},
        {"use_rslora": True},
    ],
)
def test_scales_are_pefts(config: dict[str, Any], folders: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    target = {"target_modules": ["down_proj"], "layers_to_transform": [1], "task_type": "CAUSAL_LM"}
    adapter = lora(tmp_path / "lora", **target, **config)
    model = AutoModelForCausalLM.from_pretrained(folders["ct"])
    theirs = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    found = merged(on(folders["ct"], adapter))
    torch.testing.assert_close(found[f"{MODULE}.weight"], theirs[f"{MODULE}.weight"].flatten())


@pytest.mark.parametrize(
    ("factors", "config", "words"),
    [
        (None, {"init_lora_weights": "pissa"}, "init_lora_weights is not supported, got 'pissa'"),
        (None, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is not supported, got 'pissa_niter_4'"),
        (None, {"init_lora_weights": "olora"}, "init_lora_weights is not supported, got 'olora'"),
        (None, {"init_lora_weights": "corda"}, "init_lora_weights is not supported, got 'corda'"),
        (None, {"init_lora_weights": "loftq"}, "init_lora_weights is not supported, got 'loftq'"),
        (None, {"lora_bias": True}, "lora_bias is not supported, got True"),
        (None, {"lora_alpha": "8"}, "lora_alpha: "),
        (None, {"r": 0}, "r: "),
        (None, {"r": 8}, "A of rank 4 and B of rank 4"),
        (None, {"alpha_pattern": {"(": 1}}, "alpha_pattern: '(' is not a regular expression"),
        (None, {"alpha_pattern": [1]}, "alpha_pattern: "),
        (None, {"peft_type": "IA3"}, "peft_type "),
        ({"A": torch.ones(2, MIDDLE)}, {}, "A of rank 2 and B of rank 4"),
        ({"A": torch.ones(RANK, MIDDLE, dtype=torch.int32)}, {}, "a matrix of floats, got I32 [4, 48]"),
        ({"A": torch.ones(RANK)}, {}, "a matrix of floats, got F32 [4]"),
    ],
)
def test_refusals(factors: Any, config: dict[str, Any], words: str, folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = lora(tmp_path / "lora", factors, **config)
    with pytest.raises(merge.BadInput) as refused:
        merge.check(on(folders["ct"], adapter))
    assert words in str(refused.value)
    assert_one_line(refused.value, str(adapter))
    assert_wording(f"adapter: {words}", refused.value, TMP=tmp_path)


def test_a_config_that_is_not_json(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = lora(tmp_path / "lora")
    (adapter / "adapter_config.json").write_text("r: 4")
    with pytest.raises(merge.BadInput, match=r"adapter_config.json: not JSON"):
        merge.check(on(folders["ct"], adapter))


def test_nan_in_an_adapter_blames_the_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = lora(tmp_path / "lora", {"B": torch.full((HIDDEN, RANK), torch.nan)})
    with pytest.raises(merge.BadInput, match=r"lora/adapter_model.safetensors: tensor .*lora_B.weight holds NaN"):
        merge.write(on(folders["ct"], adapter), tmp_path / "out")


def test_the_card_names_the_adapter_and_its_checksum(folders: dict[str, Path], tmp_path: Path) -> None:
    out = merge.write(on(folders["ct"], lora(tmp_path / "lora")), tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "lora (`ct` with the LoRA `lora`)" in card and "- read `lora/adapter_model.safetensors`: " in card
    assert "- read `ct/model.safetensors`: " in card and str(tmp_path) not in card


@pytest.mark.parametrize("pattern", [r"(.|\w)*(.|\w)*(.|\w)*[0]", "(" * 5000 + ")" * 5000])
def test_a_pattern_that_takes_for_ever_is_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "LONGEST_MATCH_S", 0.05)
    config = LoraConfig(peft_type="LORA", rank_pattern={pattern: 1})
    with pytest.raises(merge.BadInput, match="lora: rank_pattern: .* (takes too long to match|is not a regular)"):
        rank_and_scale(config, "model.layers.0.self_attn.q_proj.model.layers.0.self_attn.q_proj", Path("lora"))


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("q_proj", True), ("self_attn.q_proj", True), (r"layers\.\d+\.self_attn\.(q|v)_proj", True),
        (r"^model\.layers\.[0-9]+\..*", True), (r".*\.(?:q_proj|k_proj)", True), ("layers.1*.self_attn.q_proj", True),
        ("proj", False), (r"layers\.2\..*", False), ("q_proj.", False), ("k_proj", False),
    ],
)  # fmt: skip
def test_patterns_mean_what_they_mean_for_peft(pattern: str, matches: bool) -> None:
    from peft.utils.other import get_pattern_key

    module = "model.layers.11.self_attn.q_proj"
    config = LoraConfig(peft_type="LORA", r=8, rank_pattern={pattern: 3})
    assert rank_and_scale(config, module, Path("lora"))[0] == (3 if matches else 8)
    assert (get_pattern_key([pattern], module) == pattern) is matches
