"""Packed scoring must give the numbers of lm-eval's own HFLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from common.errors import BadInput
from eval.batches import BatchLimits, run_batches
from eval.language_model import PackedLM, by_width
from eval.packing import PackedRow
from tests.eval.conftest import WORDS, make_items, tiny_model


def requests(items: list[dict[str, Any]]) -> list[Any]:
    return [
        SimpleNamespace(args=(item["prompt"], " " + choice), task_name="t")
        for item in items
        for choice in item["choices"]
    ]


def assert_same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_choices_of_several_tokens_score_as_in_stock_hflm(model: Any, tokenizer: Any, batch_tokens: int) -> None:
    asked = requests(make_items("next", "nya", 15, 1))
    packed = PackedLM(model, tokenizer, batch_tokens, {})
    ours = packed.loglikelihood(asked)
    assert packed.packed is True
    lengths = {len(tokenizer.encode(request.args[1])) for request in asked}
    assert {1} < lengths  # single-token and longer choices are both there
    assert_same(ours, HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(asked, disable_tqdm=True))


def test_prompts_longer_than_the_model_are_cut_as_in_stock_hflm(
    model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    items = make_items("next", "nya", 6, 2)
    for item in items[:4]:
        item["prompt"] = " ".join(WORDS * 6) + item["prompt"]
    asked = requests(items)
    ours = PackedLM(model, tokenizer, 4096, {}).loglikelihood(asked)
    assert "16 of 24 prompts were cut" in caplog.text
    assert_same(ours, HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(asked, disable_tqdm=True))


def test_greedy_continuations_are_found(model: Any, tokenizer: Any) -> None:
    packed = PackedLM(model, tokenizer, 4096, {})
    import torch

    prompt = tokenizer.encode(WORDS[0] + "\nAnswer:")
    best = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    answers = packed._loglikelihood_tokens([(("a", "b"), prompt, [best]), (("a", "c"), prompt, [(best + 1) % 300])])
    assert [greedy for _, greedy in answers] == [True, False]


def test_rolling_windows_score_as_in_stock_hflm(model: Any, tokenizer: Any) -> None:
    texts = [" ".join(WORDS[:k] * m) for k, m in [(1, 1), (17, 9), (5, 2), (17, 3)]]
    asked = [SimpleNamespace(args=(text,)) for text in texts]
    ours = PackedLM(model, tokenizer, 4096, {}).loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours == pytest.approx(
        HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood_rolling(asked, disable_tqdm=True), abs=1e-3
    )


def test_a_model_that_packing_would_misread_is_scored_row_by_row(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(make_items("next", "nya", 5, 3))
    blind = PackedLM(model, tokenizer, 4096, {})
    monkeypatch.setattr("eval.language_model.is_packable", lambda config: False)
    monkeypatch.setattr(PackedRow, "score", lambda *_: pytest.fail("packed"))
    ours = blind.loglikelihood(asked)
    assert blind.packed is False
    assert_same(ours, HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(asked, disable_tqdm=True))


def test_a_text_is_tokenised_once_for_all_models(tokenizer: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, shared = requests(make_items("next", "nya", 5, 3)), dict[Any, list[int]]()
    PackedLM(model, tokenizer, 4096, shared).loglikelihood(asked)
    monkeypatch.setattr(HFLM, "tok_encode", lambda *_, **__: pytest.fail("tokenised again"))
    PackedLM(tiny_model(1), tokenizer, 4096, shared).loglikelihood(asked)


def test_batches_hold_every_pack_once_and_fit() -> None:
    packs = [PackedRow([0] * (5 + k % 7), [[1] * (1 + k % 3), [2]], [2 * k, 2 * k + 1]) for k in range(40)]
    cut = [list(batch) for batch, _ in run_batches(by_width(packs), PackedRow.size, BatchLimits(60, 10**9), len)]
    assert sorted(pack.numbers[0] for batch in cut for pack in batch) == list(range(0, 80, 2))
    assert all(len(batch) * (max(len(p.prompt) for p in batch) + max(p.tail for p in batch)) <= 60 for batch in cut)
    alone = run_batches(by_width(packs[:3]), PackedRow.size, BatchLimits(1, 10**9), len)
    assert [count for _, count in alone] == [1, 1, 1]


def test_a_choice_longer_than_the_model_is_refused(model: Any, tokenizer: Any) -> None:
    asked = [SimpleNamespace(args=("Answer:", " " + " ".join(WORDS * 9)), task_name="t")]
    with pytest.raises(BadInput, match="it reads 64 tokens, and a choice has"):
        PackedLM(model, tokenizer, 4096, {}).loglikelihood(asked)


def test_a_diverged_model_is_refused(tokenizer: Any) -> None:
    import torch

    broken = tiny_model(2)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(BadInput, match="NaN"):
        PackedLM(broken, tokenizer, 4096, {}).loglikelihood(requests(make_items("next", "nya", 2, 3)))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mistral", "qwen3", "gemma2"])
def test_other_architectures_score_as_in_stock_hflm(tokenizer: Any, family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "head_dim": 16,
    }
    if family == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    elif family == "gpt_neox":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    elif family in ("mistral", "gemma2"):
        shape["sliding_window"] = 8  # shorter than the prompts: packed rows would see too much
    torch.manual_seed(0)
    limits = {} if family == "gpt2" else {"max_position_embeddings": 64}
    config = AutoConfig.for_model(family, vocab_size=300, initializer_range=0.3, pad_token_id=1, **limits, **shape)
    model = AutoModelForCausalLM.from_config(config).eval()
    asked = requests(make_items("next", "nya", 8, 4))
    packed = PackedLM(model, tokenizer, 300, {})
    ours = packed.loglikelihood(asked)
    assert packed.packed is (family not in ("mistral", "gemma2"))
    assert_same(ours, HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(asked, disable_tqdm=True))


@pytest.mark.parametrize("text_first", [True, False])
def test_a_sliding_window_is_seen_where_no_choice_has_two_tokens(tokenizer: Any, text_first: bool) -> None:
    """Then packs need a mask only for the padding of their batch, and texts need none: each kind is checked."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=300, intermediate_size=64, initializer_range=0.3, sliding_window=8, **shape)
    model = MistralForCausalLM(config).eval()
    ids = tokenizer.encode(" ".join(WORDS * 2))
    asked = [(("a prompt", str(choice)), ids[: 3 + 4 * n], [choice]) for n in range(6) for choice in (5, 6, 7)]
    packed, stock = PackedLM(model, tokenizer, 300, {}), HFLM(pretrained=model, tokenizer=tokenizer)
    if text_first:
        packed.loglikelihood_rolling([SimpleNamespace(args=(WORDS[0],))])
    assert_same(packed._loglikelihood_tokens(asked), stock._loglikelihood_tokens(asked, disable_tqdm=True))


class Positions:
    """Remembers the last position that a model was given."""

    def __init__(self, model: Any) -> None:
        self.last = 0
        model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, _: Any, arguments: Any, named: Any) -> None:
        self.last = max(self.last, named["input_ids"].shape[1] - 1)


@pytest.mark.parametrize("trained_length", [2, 17, 40, 64, 1000])
def test_text_is_read_at_trained_positions_only(tokenizer: Any, trained_length: int) -> None:
    """A block of n tokens has losses at its positions 0 to n - 2: no text may be predicted from later ones."""
    model = tiny_model(0)
    asked = [SimpleNamespace(args=(" ".join(WORDS * repeats),)) for repeats in (1, 3, 9)]
    packed = PackedLM(model, tokenizer, 4096, {}, trained_length)
    seen = Positions(model)
    packed.loglikelihood_rolling(asked)
    assert seen.last == min(trained_length - 2, 63)


def test_the_loss_by_position_adds_up_to_the_windows(model: Any, tokenizer: Any) -> None:
    """Every token is predicted once; a window begins with one token of context, the last with as many as it reads."""
    import torch

    text, trained_length = " ".join(WORDS * 3), 20
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(text)]
    width, total, start = trained_length - 1, 0.0, 1
    while start < len(tokens):
        end = min(start + width, len(tokens))
        first = max(0, end - 1 - width) if start > 1 else 0
        window = torch.tensor([tokens[first:end]])
        with torch.no_grad():
            shares = model(window[:, :-1]).logits[0].log_softmax(-1)
        by_position = shares[torch.arange(window.shape[1] - 1), window[0, 1:]]
        total += float(by_position[start - first - 1 :].sum())
        start = end
    found = PackedLM(model, tokenizer, 4096, {}, trained_length).loglikelihood_rolling([SimpleNamespace(args=(text,))])
    assert found == pytest.approx([total], abs=1e-3)


def test_what_a_model_says_at_untrained_positions_plays_no_part(tokenizer: Any) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, **shape)).eval()  # type: ignore[arg-type]
    asked = [SimpleNamespace(args=(" ".join(WORDS * repeats),)) for repeats in (1, 4)]
    before = PackedLM(model, tokenizer, 4096, {}, 32).loglikelihood_rolling(asked)
    with torch.no_grad():
        model.transformer.wpe.weight[31:] = float("nan")
    assert PackedLM(model, tokenizer, 4096, {}, 32).loglikelihood_rolling(asked) == before
    with pytest.raises(BadInput, match="NaN"):
        PackedLM(model, tokenizer, 4096, {}).loglikelihood_rolling(asked)


def test_prompts_beyond_the_trained_length_are_told_and_not_cut(
    model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    items = make_items("next", "nya", 6, 2)
    items[0]["prompt"] = " ".join(WORDS) + "\nAnswer:"
    asked = requests(items)
    ours = PackedLM(model, tokenizer, 4096, {}, 16).loglikelihood(asked)
    assert "of 24 prompts are longer than the 15 tokens" in caplog.text
    assert_same(ours, HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(asked, disable_tqdm=True))
