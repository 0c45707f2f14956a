"""Frozen columns: scores against a plain computation, and weights that stay as they were bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from train.column_freezing import (
    ColumnFreezing,
    choose_columns,
    columns,
    is_real,
    linear_layers,
    score_columns,
)
from train.data.packing import IGNORED


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32))


MODELS = pytest.mark.parametrize("build", [llama, gpt2])


def rows(count: int, length: int = 12) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (count, length), generator=generator)
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


@MODELS
def test_scores_are_wandas_summed_over_a_column(build: Any) -> None:
    model = build().eval()
    blocks = rows(3)
    seen: dict[str, list[Tensor]] = {}
    for name, layer in linear_layers(model).items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0][0]))
    with torch.no_grad():
        for row in blocks:
            model(input_ids=row["input_ids"][None])
    scores = score_columns(model, blocks)
    assert scores.keys() == seen.keys() and len(scores) == 2 * (7 if build is llama else 4)
    for name, inputs in seen.items():
        wanda = columns(linear_layers(model)[name]).abs() * torch.cat(inputs[: len(blocks)]).norm(dim=0)
        torch.testing.assert_close(scores[name], wanda.sum(0).double(), rtol=1e-5, atol=1e-8)


def test_padding_does_not_count() -> None:
    model = llama()
    (row,) = rows(1)
    padded = {
        "input_ids": torch.cat([row["input_ids"], torch.zeros(5, dtype=torch.int64)]),
        "labels": torch.cat([row["labels"], torch.full((5,), IGNORED)]),
    }
    plain, with_padding = score_columns(model, [row]), score_columns(model, [padded])
    for name, score in plain.items():
        torch.testing.assert_close(with_padding[name], score)


def test_a_prompt_counts_and_what_follows_the_last_answer_does_not() -> None:
    labels = torch.tensor([IGNORED, IGNORED, 5, 6, IGNORED, 7, IGNORED, IGNORED])
    assert is_real(labels).tolist() == [True] * 6 + [False] * 2
    assert not is_real(torch.full((4,), IGNORED)).any()


def test_the_most_important_columns_are_chosen_and_the_first_of_equals() -> None:
    scores = {"a": torch.tensor([1.0, 3.0, 2.0, 3.0]), "b": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])}
    chosen = choose_columns(scores, 0.5)
    assert chosen["a"].tolist() == [1, 3] and chosen["b"].tolist() == [0, 1, 2]
    assert choose_columns(scores, 0.0)["a"].tolist() == [] and choose_columns(scores, 1.0)["b"].tolist() == [*range(5)]


@MODELS
def test_frozen_columns_stay_bit_for_bit_under_weight_decay_and_the_others_move(build: Any) -> None:
    model = build()
    frozen = choose_columns(score_columns(model, rows(2)), 0.5)
    before = {name: columns(layer).clone() for name, layer in linear_layers(model).items()}
    callback = ColumnFreezing(model, frozen)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    for row in rows(3):
        model(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss.backward()
        for name, layer in linear_layers(model).items():
            gradient = layer.weight.grad if isinstance(layer, nn.Linear) else layer.weight.grad.T
            assert not gradient[:, frozen[name]].any()
        optimizer.step()
        callback.on_optimizer_step()
        optimizer.zero_grad()
    for name, layer in linear_layers(model).items():
        free = torch.ones(before[name].shape[1], dtype=torch.bool)
        free[frozen[name]] = False
        assert torch.equal(columns(layer)[:, frozen[name]], before[name][:, frozen[name]])
        assert (columns(layer)[:, free] != before[name][:, free]).any(0).all()
