"""How many rows a forward pass takes: by tokens, by logits, and by what memory allows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from common.errors import BadInput
from eval import batches
from eval.batches import BatchLimits, is_out_of_memory
from eval.language_model import PackedLM
from eval.packing import is_paddable
from tests.eval.conftest import WORDS, make_items, tiny_model

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate"),
]


def prompts(count: int, **settings: Any) -> list[Any]:
    how = {"until": ["\n"], "max_gen_toks": 8, **settings}
    return [SimpleNamespace(args=(" ".join(WORDS[k : k + 1 + k % 3]), how), task_name="t") for k in range(count)]


def choices(count: int) -> list[Any]:
    items = make_items("next", "nya", count, 1)
    return [
        SimpleNamespace(args=(item["prompt"], " " + choice), task_name="t")
        for item in items
        for choice in item["choices"]
    ]


class Watched:
    """Counts the rows of every forward pass, and runs out of memory where there are more than `most`."""

    def __init__(self, model: Any, most: int = 10**9, error: Exception | None = None) -> None:
        self.rows: list[int] = []
        self.most, self.error = most, error
        self.handle = model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, _: Any, arguments: Any, named: Any) -> None:
        rows = named["input_ids"].shape[0]
        if rows > self.most and self.error is not None:
            raise self.error
        self.rows.append(rows)


def test_generated_texts_are_those_of_prompts_one_by_one(tokenizer: Any) -> None:
    model = tiny_model(0)
    asked = [*prompts(9), *prompts(4, max_gen_toks=3)]
    alone = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).generate_until(asked, disable_tqdm=True)
    seen = Watched(model)
    assert PackedLM(model, tokenizer, 1024, {}).generate_until(asked) == alone
    assert max(seen.rows) == 9  # a model that reads 64 tokens, and prompts of a dozen
    assert any(alone)


def test_a_context_that_is_never_filled_does_not_make_batches_small(tokenizer: Any) -> None:
    model, asked = tiny_model(0, max_position_embeddings=131_072), prompts(9)
    seen = Watched(model)
    PackedLM(model, tokenizer, 1024, {}).generate_until(asked)
    assert max(seen.rows) == 9


def test_a_model_that_cannot_be_packed_is_scored_in_batches(tokenizer: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=300, intermediate_size=64, initializer_range=0.3, sliding_window=8, **shape)
    model = MistralForCausalLM(config).eval()  # its context is 131,072 tokens
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).loglikelihood(choices(12), disable_tqdm=True)
    seen, packed = Watched(model), PackedLM(model, tokenizer, 1024, {})
    ours = packed.loglikelihood(choices(12))
    assert packed.packed is False and max(seen.rows) > 8
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)


def test_prompts_of_one_length_alone_make_a_batch_where_padding_changes_a_model(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.language_model.is_paddable", lambda config: False)
    model, asked, lengths = tiny_model(0), prompts(9), set()

    def look(_: Any, arguments: Any, named: Any) -> None:
        if named.get("attention_mask") is not None:
            assert bool(named["attention_mask"].all())
        lengths.add(named["input_ids"].shape[1])

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    ours = PackedLM(model, tokenizer, 1024, {}).generate_until(asked)
    handle.remove()
    assert len(lengths) > 2
    assert ours == HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).generate_until(asked, disable_tqdm=True)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_where_memory_runs_out_batches_are_halved(tokenizer: Any, error: Exception) -> None:
    model = tiny_model(0)
    expected = PackedLM(model, tokenizer, 1024, {}).loglikelihood(choices(12))
    generated = PackedLM(model, tokenizer, 1024, {}).generate_until(prompts(9))
    seen = Watched(model, 2, error)
    packed = PackedLM(model, tokenizer, 1024, {})
    assert [value for value, _ in packed.loglikelihood(choices(12))] == pytest.approx(
        [value for value, _ in expected], abs=1e-4
    )
    assert packed.generate_until(prompts(9)) == generated
    assert max(seen.rows) == 2


def test_one_row_that_does_not_fit_is_a_line(tokenizer: Any) -> None:
    model = tiny_model(0)
    Watched(model, 0, OUT_OF_MEMORY[0])
    with pytest.raises(BadInput, match=r"^model: memory runs out on one row of \d+ tokens\. Set eval\.gpus"):
        PackedLM(model, tokenizer, 1024, {}).loglikelihood(choices(2))


def test_other_errors_stay(tokenizer: Any) -> None:
    model = tiny_model(0)
    Watched(model, 0, RuntimeError("a kernel failed"))
    assert not is_out_of_memory(RuntimeError("a kernel failed"))
    with pytest.raises(RuntimeError, match="a kernel failed"):
        PackedLM(model, tokenizer, 1024, {}).loglikelihood(choices(2))


@pytest.mark.parametrize("way", ["packed", "row by row", "text"])
def test_logits_stay_below_their_bound(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A vocabulary of 256k in place of 300: the logits of a pass are bounded in bytes, whatever the tokens allow."""
    model = tiny_model(0)
    monkeypatch.setattr(batches, "LOGITS_BYTES", 40 * 300 * 4)
    monkeypatch.setattr("eval.packing.SLICE_BYTES", 7 * 300 * 4)
    monkeypatch.setattr("eval.language_model.is_packable", lambda config: way == "packed")
    sizes: list[tuple[int, int]] = []
    model.register_forward_hook(lambda *call: sizes.append(tuple(call[-1].logits.shape[:2])))
    packed = PackedLM(model, tokenizer, 1024, {})
    if way == "text":
        asked = [SimpleNamespace(args=(" ".join(WORDS[:k]),)) for k in range(1, 12)]
        stock = HFLM(pretrained=tiny_model(0), tokenizer=tokenizer).loglikelihood_rolling(asked, disable_tqdm=True)
        assert packed.loglikelihood_rolling(asked) == pytest.approx(stock, abs=1e-3)
    else:
        stock_answers = HFLM(pretrained=tiny_model(0), tokenizer=tokenizer).loglikelihood(
            choices(12), disable_tqdm=True
        )
        assert [value for value, _ in packed.loglikelihood(choices(12))] == pytest.approx(
            [value for value, _ in stock_answers], abs=1e-4
        )
    assert all(rows * kept <= 40 or rows == 1 for rows, kept in sizes)
    assert any(rows > 1 for rows, _ in sizes)


def test_limits_come_from_the_vocabulary_and_the_dtype() -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=262_144))
    model = SimpleNamespace(config=config, dtype=torch.bfloat16)
    assert BatchLimits.of(8192, model) == BatchLimits(8192, 2**31 // (262_144 * 2))


def test_padding_on_the_left_is_for_models_that_it_does_not_change() -> None:
    assert is_paddable(tiny_model(0).config)
