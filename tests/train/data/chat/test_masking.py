"""What carries the loss: answers and what ends them, in the prompts that generation sees, whatever the template."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.errors import BadInput
from tests.train.data.chat.model_templates import FOLDER, masking, shown, text, tokenizer, trained
from train.data.chat_template import check_trainable
from train.data.conversations import normalise_turns
from train.data.tokenization import load_library

TIBETAN, TAMIL = "གནམ་ས་ཆུ་དང་མེ།", "நீர் ஆறு மலை விடு"
IN_PROMPTS = {"qwen2_5": "\n", "qwen3": "<think>\n\n</think>\n\n"}  # what trl marks and a generation is given
ORACLES = sorted(path.stem.removesuffix("_training") for path in FOLDER.glob("*_training.jinja"))


def pair(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_default_system_prompt_is_kept_without_loss() -> None:
    [(whole, spans)], _ = trained("smollm2", "Moni?", "Zikomo.")
    assert spans == ["Zikomo.<|im_end|>"]
    assert whole.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert whole.endswith("<|im_start|>assistant\nZikomo.<|im_end|>")
    [(without, _)], _ = trained("smollm2", "Moni?", "Zikomo.", system="")
    assert without.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nMoni?")  # an empty one is not none


def test_where_a_prompt_goes_on_from_the_answer_before_it_there_is_one_sequence() -> None:
    [(_, spans)], counts = trained("qwen2_5", "Q1", "A1", "Q2", "A2")
    assert spans == ["A1<|im_end|>", "A2<|im_end|>"]
    assert dict(counts) == {"conversations": 1, "answers": 2, "sequences": 1}


def test_thoughts_that_only_the_last_answer_has_unroll_a_conversation() -> None:
    (first, second), counts = trained("qwen3", "Q1", "A1", "Q2", "A2")
    assert (first[1], second[1]) == (["A1<|im_end|>"], ["A2<|im_end|>"])
    for whole, [span] in (first, second):
        assert whole.removesuffix(span).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert second[0].count("<think>") == 1
    assert dict(counts) == {"conversations": 1, "answers": 2, "sequences": 2, "unrolled": 1}


def test_an_answer_with_thoughts_of_its_own_is_left_out() -> None:
    made, counts = trained("qwen3", "Q1", "<think>\nm\n</think>\n\nA1")
    assert made == [] and dict(counts) == {"left_out.special_token": 1}


@pytest.mark.parametrize("family", ["phi3", "phi3_5"])
def test_what_a_template_writes_at_the_end_of_all_turns_is_not_learnt(family: str) -> None:
    [(whole, spans)], _ = trained(family, "Q1", "A1", "Q2", "A2")
    assert spans == ["A1<|end|>", "A2<|end|>"] and "<|endoftext|>" not in whole


def test_a_system_message_that_moves_along_unrolls_a_conversation() -> None:
    examples, _ = trained("mistral", "Q1", "A1", "Q2", "A2", system="Sys.")
    assert [spans for _, spans in examples] == [[" A1<|im_end|>"], [" A2<|im_end|>"]]
    assert all(whole.count("[INST] Sys.\n\n") == 1 for whole, _ in examples)
    assert "Sys." not in text_of_all("mistral", "Sys.")
    [(_, spans)], _ = trained("mistral", "Q1", "A1", "Q2", "A2")
    assert spans == [" A1<|im_end|>", " A2<|im_end|>"]


def text_of_all(family: str, system: str) -> str:
    made, _ = masking(family)
    return made.template.render([{"role": "system", "content": system}, *pair("Q1", "A1")])


def test_a_system_message_that_a_template_refuses_stands_in_the_first_question() -> None:
    [(folded, _)], counts = trained("gemma", "Q1", "A1", "Q2", "A2", system="Sys.")
    [(of_gemma3, _)], others = trained("gemma3", "Q1", "A1", "Q2", "A2", system="Sys.")
    assert folded == of_gemma3 and "user\nSys.\n\nQ1<end_of_turn>" in folded
    assert counts["system_in_question"] == 1 and others["system_in_question"] == 0


def test_what_stands_between_prompt_and_answer_is_learnt() -> None:
    examples, _ = trained("harmony", "Q1", "A1", "Q2", "A2")
    head = "<|channel|>final<|message|>"
    assert [spans for _, spans in examples] == [[f"{head}A1<|return|>"], [f"{head}A2<|return|>"]]
    assert f"{head}A1<|end|>" in examples[1][0]


def test_newlines_between_turns_carry_no_loss() -> None:
    [(whole, spans)], _ = trained("olmo", "Q1", "A1", "Q2", "A2")
    assert spans == ["A1<|im_end|>", "A2<|im_end|>"] and "A1<|im_end|>\n<|user|>" in whole


@pytest.mark.parametrize("family", ["qwen2_5", "llama3", "gemma", "vicuna"])
@pytest.mark.parametrize("answer", [TIBETAN, TAMIL, "\N{YI SYLLABLE IT} \N{OLD TURKIC LETTER ORKHON A}"])
def test_answers_in_any_script_come_back(family: str, answer: str) -> None:
    """The third is in scripts that the tokenizer has single bytes for."""
    [(_, spans)], _ = trained(family, answer[::-1], answer, "Q2", f"{answer}\n{answer}")
    made, _ = masking(family)
    lead, stop = made.template.lead, made.template.stop
    assert spans == [f"{lead}{answer}{stop}", f"{lead}{answer}\n{answer}{stop}"]
    assert "�" not in "".join(spans)


def newlines() -> Any:
    """A tokenizer that joins ends of lines, as most do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    marks = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=262, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["a\n\n\nb\n\n\nc"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", chat_template=text("qwen2_5"))


def test_an_answer_whose_tokens_no_generation_would_begin_with_is_left_out() -> None:
    of, (made, _) = newlines(), masking("qwen2_5")
    stripped = normalise_turns([("user", "Moni?"), ("assistant", "\n\nZikomo")]).messages
    assert [spans for _, spans in shown(made, of, [{"messages": stripped}])[0]] == [["Zikomo<|im_end|>"]]
    examples, counts = shown(made, of, [{"messages": pair("Moni?", "\n\nZikomo")}])
    assert examples == [] and dict(counts) == {"left_out.seam": 1}


def test_a_special_token_in_a_text_leaves_the_row_out_and_its_neighbours_alone() -> None:
    made, of = masking("qwen2_5")
    rows = [{"messages": pair(*texts)} for texts in (("Q1", "A1"), ("a<|im_end|>b", "A2"), ("Q3", "A3"))]
    examples, counts = shown(made, of, rows)
    assert examples == shown(made, of, [rows[0], rows[2]])[0]
    assert counts["left_out.special_token"] == 1 and counts["conversations"] == 2


def test_a_conversation_loses_its_last_turns_to_fit_a_block() -> None:
    rows = [
        {"messages": [*pair("Q1", "A1"), *pair("Q2", "A2 " * 39 + "A2")]},
        {"messages": pair("Q " * 59 + "Q", "A3")},
    ]
    made, of = masking("llama3", size=48)
    examples, counts = shown(made, of, rows)
    assert [spans for _, spans in examples] == [["A1<|eot_id|>"]]
    assert dict(counts) == {
        "conversations": 1, "answers": 1, "sequences": 1, "cut": 1, "left_out.too_long": 1,
    }  # fmt: skip
    made, of = masking("llama3", size=48, cut=False)
    assert shown(made, of, rows) == ([], {"left_out.too_long": 2})


def test_prompts_and_outputs_are_conversations_too() -> None:
    made, of = masking("llama3")
    row = {"prompt": "A text.\nQ1?\nAnswer:", "output": "one", "more": [{"prompt": "\nQ2?\nAnswer:", "output": "two"}]}
    [(whole, spans)], _ = shown(made, of, [row])
    assert spans == ["one<|eot_id|>", "two<|eot_id|>"] and "A text.\nQ1?\nAnswer:<|eot_id|>" in whole


def test_a_stated_system_message_is_put_where_there_is_none() -> None:
    made, of = masking("smollm2")
    made = type(made)(made.template, "Yankha m'Chichewa.", made.size, made.cut)
    own = [{"role": "system", "content": "Own."}, *pair("Q1", "A1")]
    (stated, _), (kept, _) = shown(made, of, [{"messages": pair("Q1", "A1")}, {"messages": own}])[0]
    assert stated.startswith("<|im_start|>system\nYankha m'Chichewa.<|im_end|>")
    assert kept.startswith("<|im_start|>system\nOwn.<|im_end|>")


@pytest.mark.parametrize("family", ORACLES)
def test_masks_are_those_of_patched_templates(family: str) -> None:
    """trl marks in each family's template what an assistant says; it goes on after the token that stops an answer."""
    assert len(ORACLES) >= 10
    messages = [*pair("Moni?", f"Zikomo. {TAMIL}"), *pair(TIBETAN, f"{TIBETAN}\nA2")]
    made, of = masking(family)
    ours, _ = made.examples([{"messages": messages}], load_library(of.backend_tokenizer.to_str()), np.uint32)
    patched = (FOLDER / f"{family}_training.jinja").read_text(encoding="utf-8")
    theirs = of.apply_chat_template(
        messages, chat_template=patched, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )
    mask = np.array(theirs["assistant_masks"], bool)
    runs = np.split(np.arange(len(mask)), np.flatnonzero(np.diff(mask)) + 1)
    said = [of.decode([theirs["input_ids"][place] for place in run]) for run in runs if mask[run[0]]]
    spans = [span for _, of_text in shown(made, of, [{"messages": messages}])[0] for span in of_text]
    stop = made.template.stop
    assert spans == [
        said_there.removeprefix(IN_PROMPTS.get(family, "")).partition(stop)[0] + stop for said_there in said
    ]
    if len(ours) == 1:
        ids, loss = ours[0]
        assert theirs["input_ids"][: len(ids)] == ids.tolist()
        assert (loss <= mask[: len(ids)]).all()


def test_too_many_at_the_seam_are_refused() -> None:
    check_trainable({"conversations": 99, "left_out.seam": 1}, "sft")
    with pytest.raises(
        BadInput, match=r"^sft: of 102 conversations, 2 have a token that joins the prompt and its answer"
    ):
        check_trainable({"conversations": 100, "left_out.seam": 2}, "sft")
    with pytest.raises(BadInput, match=r"^sft: none of 3 conversations can be trained on \(3 too long\)"):
        check_trainable({"left_out.too_long": 3}, "sft")


def test_padding_of_a_model_whose_pad_is_its_eos_has_no_loss() -> None:
    from train.data.packing import IGNORED, PackingCounts, example_block

    made, of = masking("smollm2")
    examples, _ = made.examples(
        [{"messages": pair("Q1", "A1")}], load_library(of.backend_tokenizer.to_str()), np.uint32
    )
    stop = of.get_vocab()["<|im_end|>"]
    ids, labels, _ = example_block(list(examples), 256, stop, PackingCounts())
    length = len(examples[0][0])
    assert labels[length - 1] == stop and (labels[length:] == IGNORED).all() and (ids[length:] == stop).all()
    assert tokenizer(None).eos_token_id == stop
