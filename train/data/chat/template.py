"""A chat template: how it renders messages, and what it writes around an answer, found out by a probe.

Templates are rendered as transformers renders them (`apply_chat_template`), but for the date: where a template asks for
today's, it gets a stated one, so that the same settings give the same text on any day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.chat import DATE_FUNCTION, DEFAULT_DAY, date_function
from common.errors import BadInput, line_of
from train.data.chat.formats import BETWEEN, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from train.settings import ChatSettings

NONE, TOKENIZER, CHATML = "none", "tokenizer", "chatml"  # values of sft.template; any other is a file
CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
CHATML_TEXT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"}
UNTHINKING = {"enable_thinking": False}  # where a template knows the name: data of answers has no thoughts
THOUGHTS = ("<think>", "</think>")  # that templates take out of answers
# Texts that a probe finds again: of mixed case, in two scripts, and none that a tokenizer or a template would know.
SYSTEM, QUESTIONS, ANSWERS = "Zq0ழSx", ("Zq1ழUx", "Zq3ழUx"), ("Zq2ழAx", "Zq4ழAx")


class Failed(Exception):
    """A template does not render a conversation; the text says why."""


@dataclass(frozen=True)
class Rendering:
    """A template's text, and what it is rendered with.

    controls: tokens that stand for structure, and may not stand in a text of a conversation.
    """

    text: str
    variables: Mapping[str, Any]
    controls: tuple[str, ...]
    date: str = DEFAULT_DAY  # what it is given for today, as ISO 8601 writes it

    def __call__(self, messages: Sequence[Message], *, generation: bool = False) -> str:
        """Messages as text; generation: with what stands before the answer that is to come. Raises Failed."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        given = {DATE_FUNCTION: date_function(self.date)} if DATE_FUNCTION in self.text else {}
        try:
            template = _compile_jinja_template(self.text)
            return str(
                template.render(
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=generation,
                    **self.variables,
                    **given,
                )
            )
        except Exception as error:  # whatever the code in a template raises
            raise Failed(line_of(error) or type(error).__name__) from None

    @property
    def control(self) -> re.Pattern[str]:
        """Finds a control token in a text."""
        longest_first = sorted(self.controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


@dataclass(frozen=True)
class ChatTemplate:
    """A template, with what the probe found of it.

    An answer is trained as `lead + answer + stop` after the prompt that generation sees.
    """

    render: Rendering
    lead: str  # what it writes between the prompt of a generation and the answer; empty in most
    stop: str  # what it writes after an answer, up to the first control token, which ends a generation
    folds_system: bool  # the system message goes into the first question, as the template takes none
    one_sequence: bool  # a prompt resumes from the answer before it
    own_system: str  # text that it puts where a conversation has no system message; empty in most

    @property
    def stop_token(self) -> str:
        """The token that ends an answer."""
        found = self.render.control.search(self.stop)
        assert found is not None
        return found[0]

    def prompt(self, messages: Sequence[Message]) -> str:
        """Messages up to a question as generation sees them. Raises Failed."""
        return self.render(self.folded(messages), generation=True)

    def folded(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages, with the system message in the first question where the template takes none."""
        if not self.folds_system or messages[0]["role"] != "system":
            return messages
        system, question, *further = messages
        content = BETWEEN.join(filter(None, (system["content"], question["content"])))
        return [{"role": "user", "content": content}, *further]


def probed(render: Rendering, where: str) -> ChatTemplate:
    """Return a template whose answers can be masked. Raises BadInput, which `where` begins, with the reason why not."""
    try:
        return _Probe(render).template()
    except Failed as error:
        raise BadInput(f"{where}: {error}. Set sft.template to another one.") from None


@dataclass(frozen=True)
class _Probe:
    """A template that is tried on texts that can be found again."""

    render: Rendering
    first: list[Message] = field(default_factory=lambda: talk(QUESTIONS[:1], ANSWERS[:1]))
    both: list[Message] = field(default_factory=lambda: talk(QUESTIONS, ANSWERS))

    def template(self) -> ChatTemplate:
        """What a template is found to do. Raises Failed."""
        prompt, whole = self.rendered(self.first[:1]), self.rendered(self.first)
        following = self.rendered(self.both[:3])
        self.rendered(self.both)
        before, _, after = whole.partition(ANSWERS[0])
        if not before.startswith(prompt):
            raise Failed(
                f"before an answer the template writes {end(before)!r}, but {end(prompt)!r} where one is to come, so"
                " that a model would be trained on another prompt than it is asked with"
            )
        stop = self.render.control.search(after)
        if stop is None:
            ends = f"{after[:40]!r}, in which no token is special" if after else "nothing"
            raise Failed(f"the template ends an answer by {ends}; a generation would not know where to stop")
        lead, stops = before.removeprefix(prompt), after[: stop.end()]
        one_sequence = following.startswith(prompt + lead + ANSWERS[0] + stops)
        folds, own = self.system(prompt)
        return ChatTemplate(self.render, lead, stops, folds, one_sequence, own)

    def rendered(self, messages: list[Message]) -> str:
        """Messages as text: a prompt where they end with a question. Raises Failed if one of them is not there."""
        try:
            text = self.render(messages, generation=messages[-1]["role"] == "user")
        except Failed as error:
            raise Failed(f"the template fails on a plain conversation ({error})") from None
        places = [text.find(message["content"]) for message in messages]
        if -1 in places or any(text.count(message["content"]) > 1 for message in messages):
            lost = messages[places.index(-1)]["role"] if -1 in places else "message"
            turn = {"user": "a question", "assistant": "an answer"}.get(lost, "a message more than once")
            raise Failed(f"the template {'changes or leaves out' if -1 in places else 'writes'} {turn}")
        if places != sorted(places):
            raise Failed("the template writes the turns in another order")
        return text

    def system(self, without: str) -> tuple[bool, str]:
        """Whether a system message has to go into the first question, and what the template writes where there is none.

        without: the first question's prompt without a system message.
        """
        asked = [{"role": "system", "content": SYSTEM}, self.first[0]]
        try:
            text = self.render(asked, generation=True)
        except Failed:
            return True, ""
        if text.count(SYSTEM) != 1 or QUESTIONS[0] not in text:
            return True, ""
        head, question = text.partition(SYSTEM)[0], without.partition(QUESTIONS[0])[0]
        own = question.removeprefix(head) if question.startswith(head) else ""
        return False, self.render.control.split(own)[0].strip()


def talk(questions: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Questions and their answers in turn."""
    pairs = zip(questions, answers, strict=True)
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def end(text: str) -> str:
    """The end of a text, short enough for a line."""
    return text[-40:]


def rendering(tokenizer: PreTrainedTokenizerBase, settings: ChatSettings, where: str) -> Rendering:
    """The template that settings ask for, with a tokenizer's tokens.

    Raises BadInput, which `where` begins, for a tokenizer without a template of its own or without ChatML's marks, and
    for arguments that the template does not know.
    """
    text = settings.template
    if text == TOKENIZER:
        own = tokenizer.chat_template
        if isinstance(own, Mapping):
            own = own.get("default")
        if not isinstance(own, str) or not own:
            raise BadInput(
                f"{where} has no chat template. Set sft.template=chatml or a .jinja file, or set model.path"
                " or sft.source to a chat model that has one."
            )
        text = own
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    marks = CHATML_MARKS if text == CHATML_TEXT else ()
    for mark in marks:
        if (pieces := len(tokenizer.encode(mark, add_special_tokens=False))) != 1:
            raise BadInput(
                f"{where} has no token {mark}, which becomes {pieces} pieces. Choose a model that has it, or set"
                " sft.template to a .jinja file that ends answers with a token of this model."
            )
    known = [token for token, special in added.items() if special or (token in text and token.strip())]
    thoughts = [mark for mark in THOUGHTS if THOUGHTS[1] in text]
    variables = {**{name: value for name, value in UNTHINKING.items() if name in text}, **settings.args}
    for name in settings.args:
        if name not in text:
            raise BadInput(f"sft.template_args.{name}: the template has no such variable. Leave it out.")
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    controls = tuple(dict.fromkeys([*known, *marks, *thoughts]))
    stated = {} if settings.date is None else {"date": settings.date}
    return Rendering(text, {**tokens, **variables}, controls, **stated)


def of_tokenizer(tokenizer: PreTrainedTokenizerBase, settings: ChatSettings, where: str) -> ChatTemplate:
    """Return the probed template that settings select. Raises BadInput that begins with `where`."""
    return probed(rendering(tokenizer, settings, where), where)
