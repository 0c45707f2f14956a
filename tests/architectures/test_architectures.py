"""Tiny random models of many architectures through training, merging, scoring and generation.

An architecture that a stage cannot work with is rejected by `check` in one line; a test here shows that the reason
which the line gives is true.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import merge
from common.errors import BadInput
from eval import harness, task_set
from eval.language_model import PackedLM
from merge import Recipe
from pipeline import architecture
from pipeline.cost.shape import from_config_json
from tests.architectures.model_kinds import ARCHITECTURES, REJECTED, SUPPORTED, config_of
from train import trainer
from train.data import packing
from train.settings import Compute, CtBlocksSettings, LoraSettings, SftBlocksSettings, TrainingSettings

BLOCK = 64
TRAINING = TrainingSettings(
    tokens=4 * BLOCK, schedule_tokens=4 * BLOCK, batch_tokens=2 * BLOCK, block_size=BLOCK, learning_rate=1e-3,
    min_lr_ratio=0.1, warmup_ratio=0.1, weight_decay=0.1, seed=0,
)  # fmt: skip
LORA = LoraSettings(rank=2, alpha=4, dropout=0.0, targets="all-linear")
EXPERTS = ("mixtral", "qwen-3-moe")
PROMPTS = ("bala ri நீர்மலை", "kori усгол", "ཆུ་བོད་ mi")


def rows(names: list[str]) -> list[Any]:
    """Parameters of a test, a row of the table each; a row that fails at this commit has its reason."""
    marks = {name: ARCHITECTURES[name].xfail for name in names}
    return [
        pytest.param(name, marks=pytest.mark.xfail(reason=why, strict=True) if why else ())
        for name, why in marks.items()
    ]


def trained(model: Path, text: Path, out: Path, kind: str, lora: LoraSettings | None = None) -> Path:
    """A checkpoint after two steps on CT or SFT blocks; every logged loss is a number."""
    blocks = out / f"{kind}_blocks"
    if not blocks.exists():
        blocks.mkdir(parents=True)
        if kind == "ct":
            ct = CtBlocksSettings(
                language="xx", schedule_tokens=4 * BLOCK, block_size=BLOCK, english_fraction=0.25, seed=0
            )
            packing.ct_blocks(text / "corpus", model, ct, blocks, out / "work")
        else:
            sft = SftBlocksSettings(tokens=4 * BLOCK, block_size=BLOCK, replay_fraction=0.0, seed=0)
            packing.sft_blocks(text / "items", None, model, sft, blocks, out / "work")
    name = f"{kind}_lora" if lora else kind
    settings = TRAINING.replace(lora=lora)
    trainer.train(model, blocks, settings, out / name, work=out / f"{name}_work", compute=Compute(threads=1))
    losses = [json.loads(line)["loss"] for line in (out / name / "log.jsonl").read_text().splitlines()]
    assert losses and all(math.isfinite(loss) and loss > 0 for loss in losses)
    return out / name / "model"


def merged(base: Path, ct: Path, sft: Path, out: Path) -> Path:
    """TIES with slack of CT and SFT, written; transformers finds every tensor in it and no other."""
    recipe = {"method": "ties_sv", "base": base, "slack": 1.0, "protect": ["sft"],
              "models": {"ct": {"path": ct, "density": 0.5}, "sft": {"path": sft, "density": 0.5}}}  # fmt: skip
    merge.write(Recipe.from_dict(recipe), out)
    _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return out


@pytest.mark.parametrize("name", rows(SUPPORTED))
def test_an_architecture_goes_through_training_merging_and_scoring(
    name: str, models: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    base = models[name]
    ct, sft = (trained(base, text, tmp_path, kind) for kind in ("ct", "sft"))
    both = merged(base, ct, sft, tmp_path / "merged")
    before, after = load_file(base / "model.safetensors"), load_file(both / "model.safetensors")
    assert before.keys() == after.keys()
    moved = [key for key, tensor in after.items() if not torch.equal(tensor, before[key])]
    assert any("layers.0." in key or "h.0." in key for key in moved), "the first layer was trained"
    scores_are_those_of_lm_eval(both, text)
    generation_is_that_of_transformers(both)
    if name != "gpt-2":
        the_adapter_is_what_is_published(name, base, trained(base, text, tmp_path, "sft", lora_of(name)).parent)


def lora_of(name: str) -> LoraSettings:
    """LoRA on all matrices, or, where experts are one tensor, on those of attention."""
    targets = ("q_proj", "v_proj") if name in EXPERTS else "all-linear"
    return LoraSettings(rank=2, alpha=4, dropout=0.0, targets=targets)


def the_adapter_is_what_is_published(name: str, base: Path, out: Path) -> None:
    """peft's own merge of the adapter gives the published weights, and so does merging through the adapter."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(plain, out / "adapter").merge_and_unload().save_pretrained(out / "by_peft")
    recipe = {"method": "linear", "models": {"sft": {"path": base, "adapter": out / "adapter", "weight": 1.0}}}
    merge.write(Recipe.from_dict(recipe), out / "by_merge")
    before, published = (load_file(folder / "model.safetensors") for folder in (base, out / "model"))
    assert any(not torch.equal(tensor, before[key]) for key, tensor in published.items())
    for way in ("by_peft", "by_merge"):
        made = load_file(out / way / "model.safetensors")
        assert made.keys() == published.keys()
        assert all(torch.allclose(made[key], tensor, atol=1e-6) for key, tensor in published.items()), way


@pytest.mark.parametrize("name", ["gpt-2", *EXPERTS])
def test_lora_that_cannot_be_merged_is_rejected_before_it_is_trained(name: str, models: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="cannot be merged. Set train"):
        architecture.check_lora(models[name], f"model.path={models[name]}", LORA)


def test_lora_on_modules_that_a_model_has_not_is_rejected_before_it_is_trained(models: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="train.lora.targets=.*c_attn"):
        architecture.check_lora(models["llama-2"], "model.path=x", LORA.replace(targets=("c_attn",)))


def scores_are_those_of_lm_eval(folder: Path, text: Path) -> None:
    """Log-likelihoods of choices are HFLM's, and our records of items and of running text are numbers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(folder)
    items = [json.loads(line) for line in (text / "tasks" / "next_xx.test.jsonl").read_text().splitlines()]
    asked = [
        SimpleNamespace(args=(item["prompt"], f" {choice}"), task_name="t")
        for item in items
        for choice in item["choices"]
    ]
    ours = PackedLM(model, words, 512, {}).loglikelihood(asked)
    theirs = HFLM(pretrained=model, tokenizer=words, batch_size=4).loglikelihood(asked, disable_tqdm=True)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=2e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    tasks = task_set.prepare(text / "tasks", text / "corpus" / "text", limit=3)
    records = harness.evaluate(model, words, tasks, trained_length=BLOCK).records
    bits = [row["value"] for row in records if row["metric"] == "bits_per_byte"]
    assert bits and all(math.isfinite(value) and value > 0 for value in bits)


def generation_is_that_of_transformers(folder: Path) -> None:
    """Greedy continuations of our scorer are those of model.generate, token by token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(folder)
    lm = PackedLM(model, words, 512, {})
    asked = [SimpleNamespace(args=(prompt, {"until": [], "max_gen_toks": 6, "do_sample": False})) for prompt in PROMPTS]
    ours = lm.generate_until(asked, disable_tqdm=True)
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([lm.tok_encode(prompt)])
        with torch.no_grad():
            grown = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
                pad_token_id=words.eos_token_id,
            )  # fmt: skip
        assert words.decode(grown[0, ids.shape[1] :], skip_special_tokens=True) == answer


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_examples_of_a_row_read_each_other_where_check_says_so(name: str, models: dict[str, Path]) -> None:
    """Another token in the first example of a row, or no first example, changes nothing in the second."""
    config = config_of(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(5, vocabulary - 5, (1, 24))
    positions = torch.cat([torch.arange(10), torch.arange(14)])[None]
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 10:]
        alone = model(input_ids=ids[:, 10:], position_ids=positions[:, 10:], use_cache=False).logits
    apart = float((packed - alone).abs().max())
    reason = architecture.shares_rows(config)
    if ARCHITECTURES[name].rejected:
        assert apart > 1e-3 and reason is not None and ARCHITECTURES[name].rejected in reason
    else:
        assert apart < 1e-4 and reason is None


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_sizes_of_an_architecture_are_found_whatever_it_calls_them(name: str, models: dict[str, Path]) -> None:
    shape = from_config_json(models[name] / "config.json")
    assert (shape.hidden, shape.layers, shape.heads) == (32, 2, 4)
    assert shape.vocabulary == len(AutoTokenizer.from_pretrained(models[name]))


@pytest.mark.parametrize("name", REJECTED)
def test_a_plan_of_what_check_rejects_does_not_ask_for_a_shape(name: str, models: dict[str, Path]) -> None:
    if name == "mamba":
        with pytest.raises(BadInput, match=ARCHITECTURES[name].rejected):
            from_config_json(models[name] / "config.json")
    else:
        assert from_config_json(models[name] / "config.json").hidden == 32
