"""A frozen base in fewer bits and 8-bit AdamW, compared with peft and bitsandbytes by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from common.errors import BadInput
from tests.messages import assert_one_line, assert_wording
from train import base_model, hf_trainer, memory_saving, trainer
from train.data.blocks import Blocks
from train.dev_text import DevEvaluation
from train.settings import BaseModelSettings, Compute, LoraSettings, MemorySaving, TrainingSettings

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed (the extra `quantized`)")
LORA = LoraSettings(rank=64, alpha=128, dropout=0.0, targets="all-linear")
HEAD_AND_NORMS = ("embed_tokens", "norm", "lm_head")


@pytest.fixture(scope="module")
def prepared(corpus_dir: Path, recipe: BaseModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose matrices are large enough for 8-bit moments: 4,096 weights or more."""
    folder = tmp_path_factory.mktemp("prepared")
    larger = BaseModelSettings(**{**dict(recipe), "hidden_size": 64, "feed_forward": 128})
    base_model.prepare(corpus_dir, larger, folder)
    return folder


@pytest.fixture
def short(training: TrainingSettings) -> TrainingSettings:
    """Eight steps."""
    return training.replace(tokens=1024, schedule_tokens=1024)


def run(
    prepared: Path, settings: TrainingSettings, out: Path, tokens: int = 1024, state: Path | None = None, **more: Any
) -> dict[str, torch.Tensor]:
    trainer.train(
        prepared / "model",
        prepared / "blocks",
        settings.replace(tokens=tokens),
        out / "out",
        work=out / "work",
        save_every_tokens=512,
        resume_state=state,
        compute=Compute(threads=1, gradient_checkpointing=more.pop("recompute", False)),
        **more,
    )
    return load_file(out / "out" / "model" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def by_hand(model: Any, blocks: Path, settings: TrainingSettings, make: Any) -> Any:
    """Train by a bare loop. make: the optimizer from groups of parameters and a learning rate."""
    learnt = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [
        {"params": [each for name, each in learnt.items() if "norm" not in name], "weight_decay": 0.1},
        {"params": [each for name, each in learnt.items() if "norm" in name], "weight_decay": 0.0},
    ]
    optimizer = make(groups, settings.learning_rate)
    warmup = max(1, round(settings.warmup_ratio * settings.schedule_steps))
    schedule = transformers.get_scheduler(
        "cosine_with_min_lr", optimizer, warmup, settings.schedule_steps, scheduler_specific_kwargs={"min_lr_rate": 0.1}
    )
    rows = Blocks(blocks)
    size = settings.batch_tokens // settings.block_size
    model.train()
    for step in range(settings.steps):
        ids = torch.stack([rows[step * size + number]["input_ids"] for number in range(size)])
        count = torch.tensor(ids[:, 1:].numel())
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = model(input_ids=ids, labels=ids, num_items_in_batch=count).loss
        loss.backward()
        nn.utils.clip_grad_norm_(learnt.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


def plain_adamw(groups: Any, rate: float) -> Any:
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def base_of(prepared: Path) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(prepared / "model", dtype=torch.float32)


def test_a_bfloat16_base_is_peft_by_hand_and_a_float32_base_under_autocast(
    prepared: Path, short: TrainingSettings, tmp_path: Path
) -> None:
    settings = short.replace(lora=LORA, precision="bf16")
    rounded = run(prepared, settings.replace(base_dtype="bfloat16"), tmp_path / "rounded")
    assert same(rounded, run(prepared, settings, tmp_path / "exact")), "autocast rounds these weights too"
    config = LoraConfig(r=64, lora_alpha=128, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base_of(prepared), config)
    for name, module in model.named_modules():
        if name.endswith("base_layer"):
            module.to(torch.bfloat16)
    hand = by_hand(model, prepared / "blocks", settings, plain_adamw).state_dict()
    adapter = load_file(tmp_path / "rounded" / "out" / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 2 * 7
    for name, tensor in adapter.items():
        torch.testing.assert_close(hand[name.replace(".weight", ".default.weight")], tensor, atol=1e-5, rtol=1e-4)


def test_all_but_the_linear_layers_stay_in_float32(prepared: Path, short: TrainingSettings) -> None:
    settings = short.replace(lora=LORA, precision="bf16", base_dtype="bfloat16")
    model = hf_trainer.load_model(prepared / "model", settings, Compute())
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.bfloat16} == {
        name for name in dtypes if ".base_layer." in name
    }
    assert all(dtypes[name] == torch.float32 for name in dtypes if any(part in name for part in HEAD_AND_NORMS))


@needs_bitsandbytes
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nf4_weights_are_those_of_bitsandbytes(prepared: Path, short: TrainingSettings, precision: str) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from bitsandbytes.nn import Linear4bit

    settings = short.replace(lora=LORA, precision=precision, base_dtype="nf4")
    model = hf_trainer.load_model(prepared / "model", settings, Compute())
    original = load_file(prepared / "model" / "model.safetensors")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(layers) == 2 * 7, "no head"
    for name, layer in layers.items():
        weight = original[name.removeprefix("base_model.model.").replace(".base_layer", "") + ".weight"]
        packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        assert state.nested and torch.equal(layer.weight.data, packed)
        values = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(values, dequantize_4bit(packed, state))
        blocks = values.view(-1, 64)
        assert max(len(block.unique()) for block in blocks) <= 16
        # the widest gap of NF4's levels is 0.304 of the largest weight of a block; scales of 8 bits add to it
        off = (blocks - weight.view(-1, 64)).abs().amax(1) / weight.view(-1, 64).abs().amax(1)
        assert 0.01 < off.max() < 0.2
    for name, parameter in model.named_parameters():
        if any(part in name for part in HEAD_AND_NORMS):
            assert torch.equal(parameter, original[name.removeprefix("base_model.model.")])


@needs_bitsandbytes
def test_published_weights_are_the_original_base_plus_the_factors(
    prepared: Path, short: TrainingSettings, tmp_path: Path
) -> None:
    settings = short.replace(lora=LORA, base_dtype="nf4")
    tuned = run(prepared, settings, tmp_path)
    before = load_file(prepared / "model" / "model.safetensors")
    assert tuned.keys() == before.keys()
    assert {name for name in before if not torch.equal(tuned[name], before[name])} == {
        name for name in before if "_proj" in name
    }
    adapted = PeftModel.from_pretrained(base_of(prepared), str(tmp_path / "out" / "adapter"))
    for name, tensor in adapted.merge_and_unload().state_dict().items():
        if name in tuned:
            torch.testing.assert_close(tuned[name], tensor)
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert published.dtype == torch.float32 and not hasattr(published.config, "quantization_config")
    plain = run(prepared, short.replace(lora=LORA), tmp_path / "plain")
    assert not same(plain, tuned), "the base was rounded"
    for name in ("config.json", "generation_config.json"):
        files = [folder / "out" / "model" / name for folder in (tmp_path, tmp_path / "plain")]
        assert files[0].read_bytes() == files[1].read_bytes()


@needs_bitsandbytes
def test_embeddings_trained_next_to_a_4_bit_base_are_published(
    prepared: Path, short: TrainingSettings, tmp_path: Path
) -> None:
    settings = short.replace(lora=LORA, base_dtype="nf4", optimizer="adamw_8bit", train_embeddings=True)
    tuned = run(prepared, settings, tmp_path)
    before = load_file(prepared / "model" / "model.safetensors")
    assert tuned.keys() == before.keys()
    assert {name for name in before if not torch.equal(tuned[name], before[name])} == {
        name for name in before if "_proj" in name or "embed_tokens" in name
    }


@needs_bitsandbytes
def test_a_chain_of_budgets_equals_one_run_watched_or_not(
    prepared: Path, corpus_dir: Path, short: TrainingSettings, tmp_path: Path
) -> None:
    """On a 4-bit base with 8-bit moments. Measuring on dev must not repack the base."""
    settings = short.replace(lora=LORA.replace(dropout=0.1), base_dtype="nf4", optimizer="adamw_8bit")
    watched = DevEvaluation(str(corpus_dir), ("xx",), 256)
    whole = run(prepared, settings, tmp_path / "whole", watched=watched)
    run(prepared, settings, tmp_path / "half", 512)
    state = tmp_path / "half" / "out" / "state"
    moments = torch.load(state / "optimizer.pt", weights_only=True)["state"]
    kept = [each["__bnb_optimizer_quant_state__"] for each in moments.values()]
    assert {each["state1"].dtype for each in kept} == {torch.uint8}
    assert same(run(prepared, settings, tmp_path / "rest", state=state), whole)
    assert not same(run(prepared, settings.replace(seed=1), tmp_path / "other"), whole)


@needs_bitsandbytes
def test_8_bit_adamw_is_bitsandbytes_by_hand(prepared: Path, short: TrainingSettings, tmp_path: Path) -> None:
    """All weights are trained, those of embeddings with moments in 32 bits, as transformers has it."""
    from bitsandbytes.optim import AdamW, GlobalOptimManager

    settings = short.replace(optimizer="adamw_8bit")
    ours = run(prepared, settings, tmp_path / "ours")
    model = base_of(prepared)

    def adamw_8bit(groups: Any, rate: float) -> Any:
        manager = GlobalOptimManager.get_instance()
        assert not manager.module_weight_config_triple, "the last training is forgotten"
        manager.register_module_override(model.get_input_embeddings(), "weight", {"optim_bits": 32})
        return AdamW(groups, lr=rate, betas=(0.9, 0.95), optim_bits=8)

    hand = by_hand(model, prepared / "blocks", settings, adamw_8bit).state_dict()
    memory_saving.forget_optimizers()
    before = load_file(prepared / "model" / "model.safetensors")
    for name, tensor in ours.items():
        moved = (tensor - before[name]).abs().max()
        assert (hand[name] - tensor).abs().max() < 0.01 * moved, name
    assert not same(ours, run(prepared, short, tmp_path / "plain"))


@needs_bitsandbytes
def test_a_training_does_not_depend_on_those_before_it(prepared: Path, short: TrainingSettings, tmp_path: Path) -> None:
    """bitsandbytes keeps which places of an optimizer have 32 bits: in one of all weights, that of the embedding."""
    settings = short.replace(lora=LORA, optimizer="adamw_8bit")
    first = run(prepared, settings, tmp_path / "first")
    run(prepared, short.replace(optimizer="adamw_8bit"), tmp_path / "full")
    assert same(run(prepared, settings, tmp_path / "again"), first)


@needs_bitsandbytes
def test_recomputation_changes_nothing(prepared: Path, short: TrainingSettings, tmp_path: Path) -> None:
    settings = short.replace(lora=LORA, base_dtype="nf4", precision="bf16")
    plain = run(prepared, settings, tmp_path / "plain")
    assert same(run(prepared, settings, tmp_path / "recomputed", recompute=True), plain)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "4 bits without LoRA": ({"lora": None, "base_dtype": "nf4"}, "train.base_dtype=nf4: "),
    "bfloat16 under fp32": ({"base_dtype": "bfloat16"}, "train.base_dtype=bfloat16: "),
    "bfloat16 under fp16": ({"base_dtype": "bfloat16", "precision": "fp16"}, "train.base_dtype=bfloat16: "),
    "4 bits under ZeRO": ({"base_dtype": "nf4", "strategy": "zero3"}, "compute.strategy=zero3: "),
    "8-bit AdamW under FSDP": ({"optimizer": "adamw_8bit", "strategy": "fsdp"}, "compute.strategy=fsdp: "),
    "both under ZeRO": (
        {"base_dtype": "nf4", "optimizer": "adamw_8bit", "strategy": "zero2"},
        "compute.strategy=zero2: ",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_save_memory_is_rejected(case: str, training: TrainingSettings) -> None:
    changes, key = WRONG[case]
    given = {"lora": LORA, **changes}
    compute = Compute(strategy=given.pop("strategy", "none"))
    with pytest.raises(BadInput) as error:
        memory_saving.check(training.replace(**given), compute)
    assert_one_line(error.value, key)
    assert_wording(f"saving memory: {case}", error.value)


@pytest.mark.parametrize("changes", [{"base_dtype": "nf4"}, {"optimizer": "adamw_8bit"}])
def test_a_missing_package_is_named(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_saving, "find_spec", lambda name: None)
    with pytest.raises(BadInput) as error:
        memory_saving.check_package(MemorySaving(**changes))
    (key,) = changes
    assert_one_line(error.value, f"train.{key}=")
    assert_wording(f"saving memory: no package for {key}", error.value)
    memory_saving.check_package(MemorySaving())
