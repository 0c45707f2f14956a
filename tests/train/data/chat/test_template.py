"""What a probe finds of a template, and which templates are refused before anything is made."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from common.chat import DATE_FUNCTION, read_chat_template
from common.errors import BadInput
from tests.train.data.chat.model_templates import EOS, FOLDER, OWN, VICUNA, masking, text, tokenizer
from train.data.chat_template import CHATML_TEXT, template_of
from train.settings import ChatSettings

FAMILIES = sorted({path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training")} | set(OWN))
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + CONTENT + '<|im_end|>\n' }}{% endfor %}"
CHATML += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURNS = [("user", "Moni?"), ("assistant", "Zikomo."), ("user", "བོད་ཡིག་?"), ("assistant", "நீர்.")]
TALK = [{"role": role, "content": content} for role, content in TURNS]


class Someday(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls(2025, 1, 1, tzinfo=tz)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_those_of_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What generation with `apply_chat_template` sees, on the day that is stated."""
    monkeypatch.setattr(chat_template_utils, "datetime", Someday)
    made, of = masking(family)
    thinking = {"enable_thinking": False} if "enable_thinking" in text(family) else {}
    for messages in (TALK[:1], TALK[:3]):
        theirs = of.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **thinking)
        assert made.template.prompt(messages) == theirs


def test_the_date_is_a_setting_and_not_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = masking("llama3_2", date="2025-01-01")
    first = made.template.prompt(TALK[:1])
    monkeypatch.setattr(chat_template_utils, "datetime", Someday)
    assert made.template.prompt(TALK[:1]) == first and "Today Date: 01 Jan 2025\n" in first
    other, _ = masking("llama3_2", date="2026-07-26")
    assert "Today Date: 26 Jul 2026\n" in other.template.prompt(TALK[:1])
    assert DATE_FUNCTION in text("llama3_2") and DATE_FUNCTION not in text("qwen2_5")


def test_a_system_prompt_of_the_templates_own_is_known() -> None:
    own = {family: masking(family)[0].template.own_system for family in ("smollm2", "qwen2_5", "qwen3", "llama3")}
    assert own["smollm2"] == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert own["qwen2_5"] == "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert own["qwen3"] == own["llama3"] == ""


REFUSED = {
    "upper case": (CHATML.replace("CONTENT", "m['content'] | upper"), "changes or leaves out a question"),
    "upper-case answers": (
        CHATML.replace("CONTENT", "(m['content'] | upper if m['role'] == 'assistant' else m['content'])"),
        "changes or leaves out an answer",
    ),
    "sorted turns": (
        CHATML.replace("CONTENT", "m['content']").replace("in messages", "in messages | sort(attribute='role')"),
        "writes the turns in another order",
    ),
    "last turn only": (
        CHATML.replace("CONTENT", "m['content']").replace("in messages", "in messages[-1:]"),
        "changes or leaves out a question",
    ),
    "twice": (CHATML.replace("CONTENT", "m['content'] + m['content']"), "writes a message more than once"),
    "fails": ("{{ raise_exception('no') }}", r"fails on a plain conversation \(no\)"),
    "not a template": ("{% for %}", r"fails on a plain conversation \(Expected"),
    "undefined": ("{{ messages.wrong.again }}", "fails on a plain conversation"),
    "plain-text turns": (VICUNA.replace("END", "'\n'"), r"ends an answer by '\\n', in which no token is special"),
    "no end": (VICUNA.replace("END", "''"), "ends an answer by nothing"),
    "thoughts in the prompt alone": (
        CHATML.replace("CONTENT", "m['content']").replace(
            "assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif"
        ),
        r"but .*assistant\\n<think>\\n' where one is to come",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_cannot_be_masked_is_refused_in_one_line(case: str) -> None:
    template, says = REFUSED[case]
    with pytest.raises(BadInput, match=f"^its tokenizer: .*{says}.*Set sft.template to another one.$") as error:
        template_of(tokenizer(template), ChatSettings(template="tokenizer"), "its tokenizer")
    assert "\n" not in str(error.value)


def test_plain_turns_that_end_in_a_token_are_accepted() -> None:
    assert masking("vicuna")[0].template.stop == EOS["vicuna"] == "</s>"


def test_a_base_without_a_template_names_where_one_may_be() -> None:
    with pytest.raises(BadInput, match=r"^base has no chat template\. Set sft.template=chatml .* that has one\.$"):
        template_of(tokenizer(None), ChatSettings(template="tokenizer"), "base")


def test_chatml_is_for_tokenizers_that_have_its_marks() -> None:
    from tests.architectures import tokenizer_kinds

    settings = ChatSettings(template=CHATML_TEXT)
    assert template_of(tokenizer_kinds.tokenizer("qwen"), settings, "base").stop == "<|im_end|>"
    with pytest.raises(BadInput, match=r"^base has no token <\|im_start\|>, which becomes \d+ pieces\. Choose a model"):
        template_of(tokenizer_kinds.tokenizer("neox"), settings, "base")


def test_arguments_that_a_template_does_not_know_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^sft.template_args.thinking: the template has no such variable"):
        masking("qwen2_5", args={"thinking": True})
    assert masking("qwen3", args={"enable_thinking": True})[0].template.lead == "<think>\n\n</think>\n\n"


def test_a_template_is_found_where_transformers_finds_it(tmp_path: Any) -> None:
    assert read_chat_template(tmp_path) is None
    tokenizer("{{ messages }}").save_pretrained(tmp_path)
    assert read_chat_template(tmp_path) == "{{ messages }}"
    (tmp_path / "chat_template.jinja").unlink()
    named = '{"chat_template": [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]}'
    (tmp_path / "tokenizer_config.json").write_text(named)
    assert read_chat_template(tmp_path) == "b"
