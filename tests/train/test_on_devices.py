"""What a training does on GPUs, checked on a CPU: one device a process, packed rows, memory that is freed."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, modeling_flash_attention_utils
from transformers.modeling_utils import PreTrainedModel

from train import base_model, hf_trainer, trainer
from train.data.blocks import Blocks
from train.data.packing import IGNORED
from train.settings import BaseModelSettings, Compute, TrainingSettings

SIZE = 32  # tokens of a block


@pytest.fixture(scope="module")
def prepared(corpus_dir: Path, recipe: BaseModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    base_model.prepare(corpus_dir, recipe, folder)
    return folder


def train(prepared: Path, training: TrainingSettings, out: Path, compute: Compute) -> dict[str, Any]:
    model, blocks = prepared / "model", prepared / "blocks"
    return trainer.train(model, blocks, training.replace(tokens=256), out / "out", work=out / "work", compute=compute)


def test_a_process_that_sees_two_gpus_uses_one(
    prepared: Path, training: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    facts = train(prepared, training, tmp_path, Compute(device="cuda", threads=1))
    assert facts["wrapper"] == "LlamaForCausalLM"


def test_a_finished_training_keeps_no_weights_in_memory(
    prepared: Path, training: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[Any]] = []
    load = hf_trainer.load_model

    def watched(*arguments: Any) -> Any:
        model = load(*arguments)
        kept.extend(weakref.ref(parameter) for parameter in model.parameters())
        return model

    monkeypatch.setattr(hf_trainer, "load_model", watched)
    for precision in ("fp32", "bf16"):
        gc.collect()
        gc.disable()  # what is freed is freed by the training, not by chance
        try:
            train(prepared, training.replace(precision=precision), tmp_path / precision, Compute(threads=1))
            assert kept and not [parameter for parameter in kept if parameter() is not None]
        finally:
            gc.enable()


@pytest.mark.parametrize("cached", [True, False])
def test_the_published_config_has_the_use_cache_of_the_base(
    cached: bool, prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(prepared / "model").save_pretrained(base)
    for path in (prepared / "model").glob("tokenizer*"):
        (base / path.name).write_bytes(path.read_bytes())
    described = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**described, "use_cache": cached}))
    generation = json.loads((base / "generation_config.json").read_text()) | {"max_length": 77, "top_k": 7}
    (base / "generation_config.json").write_text(json.dumps(generation))
    trainer.train(
        base, prepared / "blocks", training.replace(tokens=256), tmp_path / "out", work=tmp_path / "work",
        compute=Compute(threads=1),
    )  # fmt: skip
    published = tmp_path / "out" / "model"
    assert json.loads((published / "config.json").read_text())["use_cache"] is cached
    written = json.loads((published / "generation_config.json").read_text())
    assert {key: written.get(key) for key in generation} == generation


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """FlashAttention's function for rows of one sequence each: (rows, tokens, heads, width)."""
    inputs = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mixed = functional.scaled_dot_product_attention(*inputs, is_causal=causal, scale=softmax_scale, enable_gqa=True)
    return mixed.transpose(1, 2)


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """FlashAttention's function for joined sequences: (tokens of all, heads, width)."""
    bounds = cu_seqlens_q.tolist()
    parts = [
        attention(*(tensor[None, start:stop] for tensor in (query, key, value)), softmax_scale, causal)[0]
        for start, stop in pairwise(bounds)
    ]
    return torch.cat(parts)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stands for flash-attn's kernels, which need a GPU."""
    library = modeling_flash_attention_utils
    functions = (attention, varlen_attention, None, library._pad_input, library._unpad_input)
    monkeypatch.setattr(library, "_lazy_imports", lambda *_, **__: functions)
    monkeypatch.setattr(library, "_loaded_implementation", None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    yield


def packed(prepared: Path, rows: int) -> dict[str, torch.Tensor]:
    """Rows of running text, and of two examples of which the first half carries no loss."""
    blocks = Blocks(prepared / "blocks")
    ids = torch.stack([blocks[number]["input_ids"] for number in range(rows)])
    labels, positions = ids.clone(), torch.arange(SIZE).repeat(rows, 1)
    for row in range(1, rows):
        second = 10 + row
        labels[row, :6] = labels[row, second : second + 4] = IGNORED
        positions[row, second:] = torch.arange(SIZE - second)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def engine(prepared: Path, work: Path, settings: TrainingSettings, attention: str) -> hf_trainer.Trainer:
    compute = Compute(threads=1)
    arguments = hf_trainer.training_arguments(compute, work, settings, None)
    model = AutoModelForCausalLM.from_pretrained(prepared / "model", attn_implementation=attention)
    progress = hf_trainer.Progress(compute, settings, work / "log.jsonl", None, None)
    return hf_trainer.Trainer(model, arguments, Blocks(prepared / "blocks"), progress)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_flash_attention_gives_the_loss_and_gradients_of_sdpa(
    rows: int, prepared: Path, training: TrainingSettings, tmp_path: Path, kernels: None
) -> None:
    batch, found = packed(prepared, rows), {}
    for name in ("sdpa", "flash_attention_2"):
        training_engine = engine(prepared, tmp_path, training, name)
        count = batch["labels"][:, 1:].ne(IGNORED).sum()
        loss = training_engine.compute_loss(training_engine.model, dict(batch), num_items_in_batch=count)
        loss.backward()
        gradients = [parameter.grad for parameter in training_engine.model.parameters()]
        found[name] = (loss.detach(), *gradients)
    for ours, reference in zip(found["flash_attention_2"], found["sdpa"], strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-4)


def test_examples_of_a_row_do_not_see_each_other_in_any_batch(
    prepared: Path, training: TrainingSettings, tmp_path: Path, kernels: None
) -> None:
    training_engine = engine(prepared, tmp_path, training, "flash_attention_2")
    batch = packed(prepared, 2)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][1, 3] += 1  # in the first example of the second row, whose second example begins at 11
    with torch.no_grad():
        before, after = (
            training_engine.compute_loss(training_engine.model, one, return_outputs=True)[1].logits.reshape(2, SIZE, -1)
            for one in (batch, changed)
        )
    moved = (before != after).any(-1)
    assert moved[1, 3:11].all() and not moved[1, 11:].any() and not moved[0].any()
