"""Bits of a text are those of its own tokens, whatever a tokenizer puts around them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eval.language_model import PackedLM
from tests.common.test_special_tokens import tokenizer_with
from tests.eval.conftest import make_items, tiny_model

TEXTS = ["Pachiyambi mulungu adalenga kumwamba ndi dziko lapansi.", "আদিতে ঈশ্বর", "དང་པོར་དཀོན་མཆོག", "x"]
AROUND = {  # template: the context of a text's first token; <s> is token 0, </s> 1
    "$A": [0],
    "<s> $A": [0],
    "$A </s>": [0],
    "<s> $A </s>": [0],
    "</s> <s> $A": [1, 0],
}


def nats_by_hand(model: Any, context: list[int], text: str, tokenizer: Any, width: int) -> float:
    """log p of a text's tokens, token by token, each from all that its window holds before it."""
    tokens = [*context, *tokenizer.encode(text, add_special_tokens=False)]
    total, start = 0.0, len(context)
    while start < len(tokens):
        end = min(len(tokens), width + 1 if start == len(context) else start + width)
        first = 0 if start == len(context) else end - width - 1
        for place in range(start, end):
            with torch.no_grad():
                logits = model(torch.tensor([tokens[first:place]])).logits[0, -1]
            total += float(logits.log_softmax(-1)[tokens[place]])
        start = end
    return total


@pytest.mark.parametrize("trained_length", [None, 41, 8])
@pytest.mark.parametrize("template", AROUND)
def test_bits_are_those_of_the_text_s_own_tokens(template: str, trained_length: int | None) -> None:
    model, tokenizer = tiny_model(0), tokenizer_with(template)
    width = trained_length - 1 if trained_length else 64
    expected = [nats_by_hand(model, AROUND[template], text, tokenizer, width) for text in TEXTS]
    asked = [SimpleNamespace(args=(text,)) for text in TEXTS]
    found = PackedLM(model, tokenizer, 1024, {}, trained_length).loglikelihood_rolling(asked)
    assert found == pytest.approx(expected, abs=2e-3)


def test_windows_of_one_token_are_read_after_longer_contexts() -> None:
    """A model of two tokens: the second window can hold one of the special tokens before a text, and no more."""
    model, tokenizer = tiny_model(0), tokenizer_with("</s> <s> $A")
    found = PackedLM(model, tokenizer, 64, {}, 2).loglikelihood_rolling([SimpleNamespace(args=("dziko",))])
    assert found == pytest.approx([nats_by_hand(model, [0], "dziko", tokenizer, 1)], abs=1e-3)


def test_an_end_token_that_a_tokenizer_appends_is_no_part_of_prompts_and_choices() -> None:
    model = tiny_model(0)
    items = make_items("next", "nya", 3, 1)
    asked = [SimpleNamespace(args=(item["prompt"][:40], " " + item["choices"][0]), task_name="t") for item in items]
    with_end, without = (PackedLM(model, tokenizer_with(template), 1024, {}) for template in ("<s> $A </s>", "<s> $A"))
    assert with_end.loglikelihood(asked) == without.loglikelihood(asked)
    prompts = [SimpleNamespace(args=(item["prompt"][:20], {"until": ["\n"], "max_gen_toks": 5})) for item in items]
    assert with_end.generate_until(prompts) == without.generate_until(prompts)


def test_a_text_without_tokens_has_no_bits(tokenizer: Any, model: Any) -> None:
    assert PackedLM(model, tokenizer, 64, {}).loglikelihood_rolling([SimpleNamespace(args=("",))]) == [0.0]
