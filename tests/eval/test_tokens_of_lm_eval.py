"""The tokens that a model reads and predicts are those of lm-eval's HFLM, whatever a tokenizer puts around a text.

Two differences are wanted: a token that the tokenizer appends is left out, and of running text only its own tokens are
predicted. There the tokens are those of HFLM with a tokenizer that puts nothing around a text.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from common.errors import BadInput
from eval.language_model import PackedLM
from tests.common.test_special_tokens import tokenizer_with
from tests.eval.conftest import WORDS, tiny_model

KINDS: dict[str, tuple[str | None, dict[str, str], str]] = {  # template, changed tokens; HFLM's template
    "nothing added": ("$A", {}, "$A"),
    "no template": (None, {}, "$A"),
    "BOS added": ("<s> $A", {}, "<s> $A"),
    "EOS added": ("$A </s>", {}, "$A"),
    "BOS and EOS added": ("<s> $A </s>", {}, "<s> $A"),
    "BOS is EOS, added": ("</s> $A", {"bos_token": "</s>"}, "</s> $A"),
    "BOS is EOS, not added": ("$A", {"bos_token": "</s>"}, "$A"),
    "no BOS": ("$A", {"bos_token": ""}, "$A"),
}
PROMPTS = ["Mulungu\nAnswer:", "dziko ", "", "<s> adalenga", "</s> adalenga", "འཇིག", " ".join(WORDS)]
PAIRS = [(prompt, choice) for prompt in PROMPTS for choice in (" pa", " kumwamba", " <s>", "ལ")]
TEXTS = ["Pachiyambi", "x", "<s> dziko", "དང་པོར་དཀོན་མཆོག", " ".join(WORDS * 2)]
NUMBERS = ["BOS added", "BOS is EOS, added", "no BOS"]  # of which texts are scored and generated too
Read = list[tuple[list[int], list[int]]]


def tokenizer_of(template: str | None, changes: dict[str, str]) -> Any:
    made = tokenizer_with(template)
    for name, token in changes.items():
        setattr(made, name, token or None)
    return made


def both(kind: str, plain: bool = False) -> tuple[PackedLM, HFLM]:
    """Our language model with a kind of tokenizer, and HFLM; plain: with one that puts nothing around a text."""
    template, changes, theirs = KINDS[kind]
    model = tiny_model(0)
    other = tokenizer_of("$A" if plain else theirs, changes)
    return PackedLM(model, tokenizer_of(template, changes), 512, {}), HFLM(
        pretrained=model, tokenizer=other, batch_size=1
    )


def scored(lm: HFLM, ask: str, arguments: list[Any], monkeypatch: pytest.MonkeyPatch) -> Read:
    """(context, continuation), as token ids, of all that a language model scores for requests."""
    read: Read = []

    def record(requests: Any, **_: Any) -> list[tuple[float, bool]]:
        read.extend((list(context), list(continuation)) for _, context, continuation in requests)
        return [(0.0, False)] * len(requests)

    monkeypatch.setattr(lm, "_loglikelihood_tokens", record)
    getattr(lm, ask)([SimpleNamespace(args=each, task_name="t") for each in arguments], disable_tqdm=True)
    return read


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_and_continuations(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (scored(lm, "loglikelihood", PAIRS, monkeypatch) for lm in both(kind))
    assert len(ours) == len(PAIRS) and ours == theirs
    own = tokenizer_with("$A").encode(PROMPTS[0])
    assert ours[0][0] == {"BOS added": [0], "BOS and EOS added": [0], "BOS is EOS, added": [1]}.get(kind, []) + own


@pytest.mark.parametrize("kind", NUMBERS)
def test_log_likelihoods(kind: str) -> None:
    asked = [SimpleNamespace(args=pair, task_name="t") for pair in PAIRS]
    ours, theirs = (lm.loglikelihood(asked, disable_tqdm=True) for lm in both(kind))
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_running_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [(text,) for text in TEXTS]
    ours, theirs = (scored(lm, "loglikelihood_rolling", arguments, monkeypatch) for lm in both(kind, plain=True))
    assert len(ours) > len(TEXTS) and ours == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_generation(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are batches that are padded on the left; HFLM's are prompts one by one."""
    prompts = [prompt for prompt in PROMPTS if prompt]
    asked = [SimpleNamespace(args=(prompt, {"until": ["\n"], "max_gen_toks": 5})) for prompt in prompts]
    read: dict[str, list[list[int]]] = {"ours": [], "theirs": []}
    for side, lm in zip(read, both(kind), strict=True):

        def record(context: Any, attention_mask: Any, _read: list[list[int]] = read[side], **_: Any) -> Any:
            _read.extend(row[mask.bool()].tolist() for row, mask in zip(context, attention_mask, strict=True))
            assert all((mask.diff() >= 0).all() for mask in attention_mask), "padded on the left"
            return context

        monkeypatch.setattr(lm, "_model_generate", record)
        lm.generate_until(asked, disable_tqdm=True)
    assert len(read["ours"]) == len(prompts) and sorted(read["ours"]) == sorted(read["theirs"])
    assert max(map(len, read["ours"])) == 64 - 5, "the longest is cut to leave room"


@pytest.mark.parametrize("kind", NUMBERS)
def test_generated_texts(kind: str) -> None:
    asked = [
        SimpleNamespace(args=(prompt, {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}))
        for prompt in PROMPTS
        if prompt
    ]
    with torch.no_grad():
        ours, theirs = (lm.generate_until(asked, disable_tqdm=True) for lm in both(kind))
    assert ours == theirs


def test_a_prompt_of_spaces_alone_is_rejected() -> None:
    """lm-eval moves spaces to the choice, so nothing is left to predict its first token from."""
    lm, _ = both("nothing added")
    with pytest.raises(BadInput, match=r"^tasks: a prompt of spaces alone has no tokens, got \('  ', ' pa'\)\. "):
        lm.loglikelihood([SimpleNamespace(args=("  ", " pa"), task_name="t")])
