"""The same with a tokenizer of a real model, where `make smollm2-model` has put it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.data.chat.model_templates import shown
from train.data.chat_template import Masking, template_of
from train.data.conversations import normalise_turns
from train.settings import ChatSettings

MODEL = Path(__file__).parents[4] / "models" / "smollm2-135m-instruct"
pytestmark = pytest.mark.skipif(not (MODEL / "tokenizer.json").is_file(), reason="make smollm2-model has not been run")
TALK = [("Moni?", "Zikomo."), ("བོད་སྐད་?", "གནམ་ས་ཆུ་དང་མེ།"), ("தமிழ்?", "நீர்\nஆறு 😀")]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Masking, Any]:
    from train.data.packing import load_tokenizer

    of = load_tokenizer(MODEL)
    return Masking(template_of(of, ChatSettings(template="tokenizer"), "smollm2"), None, 512, True), of


def test_answers_and_their_stop_carry_the_loss(smollm2: tuple[Masking, Any]) -> None:
    turns = [turn for question, answer in TALK for turn in (("user", question), ("assistant", answer))]
    [(whole, spans)], counts = shown(*smollm2, [{"messages": normalise_turns(turns).messages}])
    assert spans == [f"{answer}<|im_end|>" for _, answer in TALK]
    assert "You are a helpful AI assistant named SmolLM" in whole.partition("Moni?")[0]
    assert dict(counts) == {"conversations": 1, "answers": 3, "sequences": 1}


def test_an_answer_that_begins_with_lines_is_stripped_or_left_out(smollm2: tuple[Masking, Any]) -> None:
    for text, spans in (("Zikomo", [["Zikomo<|im_end|>"]]), ("\n\nZikomo", [])):
        talk = [{"role": "user", "content": "Moni?"}, {"role": "assistant", "content": text}]
        made, counts = shown(*smollm2, [{"messages": talk}])
        assert [of_text for _, of_text in made] == spans and counts["left_out.seam"] == (not spans)
