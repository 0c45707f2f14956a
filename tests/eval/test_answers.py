"""Free answers, with a bare loop over the model as the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import BadInput
from eval.answers import Answer, generate_answers
from eval.prompting import render_chat
from tests.eval.chat_models import CHATML, DATED, NO_SYSTEM, chat_model, chat_tokenizer, saved

ASKED = ["நீர் என்றால் என்ன?", "Moni", "བོད་ཡིག་ཟེར་ན་ཅི་ཞིག་ཡིན་ནམ། Tell me more about it, please.", "ߒߞߏ?"]
CHATS = [[{"role": "system", "content": "பதில் சொல்"}, {"role": "user", "content": text}] for text in ASKED]


def bare(model: Any, prompt: list[int], stops: list[int], room: int) -> tuple[list[int], bool]:
    """Greedy decoding of one prompt, without a cache or padding."""
    said: list[int] = []
    while len(said) < room:
        token = int(model(torch.tensor([prompt + said])).logits[0, -1].argmax())
        if token in stops:
            return said, True
        said.append(token)
    return said, False


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return chat_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    """Its generation config has two stops, the second of which is a token that it says in some answers."""
    made = chat_model(tokenizer)
    end = tokenizer.eos_token_id
    made.generation_config.eos_token_id = [end]
    prompts = [tokenizer.encode(text) for text in ASKED]
    third = [bare(made, prompt, [end], 12)[0][3:4] for prompt in prompts]
    made.generation_config.eos_token_id = [end, third[0][0]]
    return made


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_answers_are_those_of_a_bare_loop(model: Any, tokenizer: Any, batch_tokens: int) -> None:
    stops = model.generation_config.eos_token_id
    texts = [*ASKED, *(render_chat(tokenizer, chat) for chat in CHATS)]
    expected = []
    for text in texts:
        said, ended = bare(model, tokenizer.encode(text), stops, 12)
        expected.append(Answer(tokenizer.decode(said, skip_special_tokens=True), len(said), ended))
    found = generate_answers(model, tokenizer, [*ASKED, *CHATS], max_new_tokens=12, batch_tokens=batch_tokens)
    assert found == expected
    assert {answer.ended for answer in found} == {True, False}
    assert found[0].ended and found[0].tokens <= 3


def test_longer_batches_take_fewer_passes(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **how: (rows.append(len(how["input_ids"])), generate(**how))[1])
    one_by_one = generate_answers(model, tokenizer, CHATS, max_new_tokens=5, batch_tokens=1)
    assert rows == [1, 1, 1, 1]
    assert generate_answers(model, tokenizer, CHATS, max_new_tokens=5, batch_tokens=10_000) == one_by_one
    assert rows[4:] == [4]


def test_a_batch_that_does_not_fit_is_halved(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, generate = generate_answers(model, tokenizer, ASKED, max_new_tokens=5), model.generate

    def small(**how: Any) -> Any:
        if len(how["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**how)

    monkeypatch.setattr(model, "generate", small)
    assert generate_answers(model, tokenizer, ASKED, max_new_tokens=5, batch_tokens=100_000) == expected


def test_a_penalty_of_the_folder_counts_unless_greedy(model: Any, tokenizer: Any) -> None:
    plain = generate_answers(model, tokenizer, CHATS, max_new_tokens=12)
    model.generation_config.repetition_penalty = 5.0
    assert generate_answers(model, tokenizer, CHATS, max_new_tokens=12) != plain
    assert generate_answers(model, tokenizer, CHATS, max_new_tokens=12, generation="greedy") == plain
    assert model.generation_config.repetition_penalty == 5.0


def test_a_folder_answers_as_its_model(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = generate_answers(model, tokenizer, CHATS, max_new_tokens=6)
    assert generate_answers(tmp_path, None, CHATS, max_new_tokens=6, device="cpu", dtype="float32") == expected


def test_an_answer_has_the_room_that_the_prompt_leaves(tokenizer: Any) -> None:
    small = chat_model(tokenizer, max_position_embeddings=24)
    small.generation_config.eos_token_id = None
    tokenizer_without_end = chat_tokenizer()
    tokenizer_without_end.eos_token = None
    found = generate_answers(small, tokenizer_without_end, ["a", "a" * 20], max_new_tokens=16)
    used = [len(tokenizer.encode(text)) for text in ("a", "a" * 20)]
    assert [answer.tokens for answer in found] == [min(16, 24 - count) for count in used]
    with pytest.raises(BadInput, match=r"prompts: number 2 must have .* fewer than the 24 that the model reads"):
        generate_answers(small, tokenizer, ["a", "நீர்" * 9])


def test_templates_get_the_stated_day(tmp_path: Path) -> None:
    dated = chat_tokenizer(DATED)
    assert render_chat(dated, CHATS[0]).startswith("Today: 01 Jan 2025\n<|im_start|>system\nபதில் சொல்<|im_end|>")
    assert render_chat(dated, CHATS[0], "2026-07-26").startswith("Today: 26 Jul 2026\n")
    assert not dated.apply_chat_template(CHATS[0], tokenize=False).startswith("Today: 01 Jan 2025")


def test_what_a_template_does_not_take_is_rejected_in_one_line() -> None:
    none, strict, broken = (
        chat_tokenizer(None),
        chat_tokenizer(NO_SYSTEM),
        chat_tokenizer("{{ nothing.here }}" + CHATML),
    )
    with pytest.raises(BadInput, match=r"eval\.chat: .* has no chat template\. Set eval\.chat=none"):
        render_chat(none, CHATS[0])
    with pytest.raises(BadInput, match=r"eval\.system: .* takes no system message \(System role not supported\)"):
        render_chat(strict, CHATS[0])
    with pytest.raises(BadInput, match=r"eval\.chat: the chat template of .* fails \('nothing' is undefined\)"):
        render_chat(broken, CHATS[0])


def test_a_folder_on_disk_is_asked(tmp_path: Path) -> None:
    found = generate_answers(saved(tmp_path), None, CHATS[:1], max_new_tokens=3)
    assert len(found) == 1 and found[0].tokens <= 3
