"""A chat template: how it renders messages, what it writes around an answer, and how it masks training examples.

Templates are rendered as transformers renders them (`apply_chat_template`), except for the date: a template that writes
today's date gets a fixed one, so that the same settings give the same text on any day.
"""

from __future__ import annotations

import json
import re
import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.chat import DATE_FUNCTION, DEFAULT_DAY, date_function
from common.errors import BadInput, line_of
from train.data.blocks import Tokens
from train.data.conversations import BETWEEN, Message, format_counts

if TYPE_CHECKING:
    from tokenizers import Tokenizer
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
UNTHINKING = {"enable_thinking": False}  # if a template knows the name: our answers have no thoughts
THOUGHTS = ("<think>", "</think>")  # that templates take out of answers
# Texts that a probe can find again: mixed case, two scripts, and unknown to tokenizers and templates.
SYSTEM, QUESTIONS, ANSWERS = "Zq0ழSx", ("Zq1ழUx", "Zq3ழUx"), ("Zq2ழAx", "Zq4ழAx")


class Failed(Exception):
    """A template does not render a conversation; the text is the reason."""


@dataclass(frozen=True)
class Rendering:
    """A template's text, and what it is rendered with.

    controls: tokens of structure, which must not be in the text of a message.
    """

    text: str
    variables: Mapping[str, Any]
    controls: tuple[str, ...]
    date: str = DEFAULT_DAY  # for today, in ISO 8601

    def __call__(self, messages: Sequence[Message], *, generation: bool = False) -> str:
        """Render messages as text. generation: with what comes before the next answer. Raises Failed."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        dates = {DATE_FUNCTION: date_function(self.date)} if DATE_FUNCTION in self.text else {}
        try:
            template = _compile_jinja_template(self.text)
            return str(
                template.render(
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=generation,
                    **self.variables,
                    **dates,
                )
            )
        except Exception as error:  # whatever the code in a template raises
            raise Failed(line_of(error) or type(error).__name__) from None

    @property
    def control(self) -> re.Pattern[str]:
        """Return the pattern of a control token."""
        longest_first = sorted(self.controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


@dataclass(frozen=True)
class ChatTemplate:
    """A template, with what the probe found out.

    An answer is trained as `lead + answer + stop` after the prompt that generation sees.
    """

    render: Rendering
    lead: str  # what it writes between the prompt of a generation and the answer; empty in most
    stop: str  # what it writes after an answer, up to the first control token, which ends a generation
    folds_system: bool  # whether the system message goes into the first question, as the template takes none
    one_sequence: bool  # whether each prompt continues after the answer before it
    own_system: str  # the system text that it writes itself if a conversation has none; empty in most

    @property
    def stop_token(self) -> str:
        """Return the token that ends an answer."""
        match = self.render.control.search(self.stop)
        assert match is not None
        return match[0]

    def prompt(self, messages: Sequence[Message]) -> str:
        """Render messages up to a question, as generation sees them. Raises Failed."""
        return self.render(self.folded(messages), generation=True)

    def folded(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages, with the system message in the first question if the template takes none."""
        if not self.folds_system or messages[0]["role"] != "system":
            return messages
        system, question, *further = messages
        content = BETWEEN.join(filter(None, (system["content"], question["content"])))
        return [{"role": "user", "content": content}, *further]


def probe(render: Rendering, where: str) -> ChatTemplate:
    """Return a template whose answers can be masked. Raises BadInput that begins with `where` and gives the reason."""
    try:
        return _Probe(render).template()
    except Failed as error:
        raise BadInput(f"{where}: {error}. Set sft.template to another one.") from None


@dataclass(frozen=True)
class _Probe:
    """A template that is rendered with texts that can be found again."""

    render: Rendering
    first: list[Message] = field(default_factory=lambda: turns_of(QUESTIONS[:1], ANSWERS[:1]))
    both: list[Message] = field(default_factory=lambda: turns_of(QUESTIONS, ANSWERS))

    def template(self) -> ChatTemplate:
        """Return what the template does. Raises Failed."""
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
        folds, default_system = self.system(prompt)
        return ChatTemplate(self.render, lead, stops, folds, one_sequence, default_system)

    def rendered(self, messages: list[Message]) -> str:
        """Render messages, as a prompt if they end with a question. Raises Failed if one of them is not in the text."""
        try:
            text = self.render(messages, generation=messages[-1]["role"] == "user")
        except Failed as error:
            raise Failed(f"the template fails on a plain conversation ({error})") from None
        positions = [text.find(message["content"]) for message in messages]
        if -1 in positions or any(text.count(message["content"]) > 1 for message in messages):
            lost = messages[positions.index(-1)]["role"] if -1 in positions else "message"
            turn = {"user": "a question", "assistant": "an answer"}.get(lost, "a message more than once")
            raise Failed(f"the template {'changes or leaves out' if -1 in positions else 'writes'} {turn}")
        if positions != sorted(positions):
            raise Failed("the template writes the turns in another order")
        return text

    def system(self, without: str) -> tuple[bool, str]:
        """Return whether a system message has to go into the first question, and what the template writes without one.

        without: the first question's prompt without a system message.
        """
        messages = [{"role": "system", "content": SYSTEM}, self.first[0]]
        try:
            text = self.render(messages, generation=True)
        except Failed:
            return True, ""
        if text.count(SYSTEM) != 1 or QUESTIONS[0] not in text:
            return True, ""
        head, question = text.partition(SYSTEM)[0], without.partition(QUESTIONS[0])[0]
        system = question.removeprefix(head) if question.startswith(head) else ""
        return False, self.render.control.split(system)[0].strip()


def turns_of(questions: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Return questions and their answers in turn, as messages."""
    pairs = zip(questions, answers, strict=True)
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def end(text: str) -> str:
    """Return the end of a text, short enough for a message."""
    return text[-40:]


def rendering_of(tokenizer: PreTrainedTokenizerBase, settings: ChatSettings, where: str) -> Rendering:
    """Return the template that settings select, with a tokenizer's tokens.

    Raises BadInput that begins with `where` for a tokenizer without a chat template or without ChatML's marks, and for
    arguments that the template does not know.
    """
    text = settings.template
    if text == TOKENIZER:
        template = tokenizer.chat_template
        if isinstance(template, Mapping):
            template = template.get("default")
        if not isinstance(template, str) or not template:
            raise BadInput(
                f"{where} has no chat template. Set sft.template=chatml or a .jinja file, or set model.path"
                " or sft.source to a chat model that has one."
            )
        text = template
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
    return Rendering(text, {**tokens, **variables}, controls, settings.date or DEFAULT_DAY)


def template_of(tokenizer: PreTrainedTokenizerBase, settings: ChatSettings, where: str) -> ChatTemplate:
    """Return the probed template that settings select. Raises BadInput that begins with `where`."""
    return probe(rendering_of(tokenizer, settings, where), where)


# --- Masking: conversations -> examples for packing ---
#
# An answer is trained as generation sees and writes it: the prompt of all turns before it, rendered as for a
# generation, then `lead + answer + stop`, with the loss on these three. If each prompt continues after the answer
# before it, a conversation is one sequence with the loss on all of its answers. Otherwise (the template drops earlier
# thoughts, or moves the system message) it is unrolled into one example per answer. A text is encoded once, as a
# whole. Its tokens up to an answer must be those of the prompt alone, which is all that a generation has.

LEFT_OUT = "left_out."  # before the reason, in the name of a count
SEAM = "seam"  # left out: the first tokens of an answer are not those that a generation would have
MAX_AT_SEAM = 0.01  # fraction of conversations left out for it, above which template and tokenizer do not fit
Example = tuple[Tokens, NDArray[np.bool_]]  # token ids, and which of them carry the loss


@dataclass(frozen=True)
class Text:
    """One sequence as text, and the characters of its answers: from the end of a prompt to a stop's end."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Masking:
    """The way conversations become examples.

    system: message for those that have none; None: the template's default. size: tokens of a block, which an example
    must fit. cut: whether longer conversations lose their last turns; else they are left out.
    """

    template: ChatTemplate
    system: str | None
    size: int
    cut: bool

    def examples(
        self, rows: Sequence[Mapping[str, Any]], library: Tokenizer, dtype: type[np.unsignedinteger[Any]]
    ) -> tuple[list[Example], Counter[str]]:
        """Return the examples of rows of instructions in their order, and counts.

        Counts: conversations, answers and sequences that are kept, cut, unrolled, system_in_question, and those left
        out, by reason, as `left_out.<reason>`. library: a tokenizer that neither cuts nor pads.
        """
        examples: list[Example] = []
        counts: Counter[str] = Counter()
        for row in rows:
            messages = self.messages(row)
            try:
                texts = self.texts(messages)
                of_row = [example for text in texts for example in self.encoded(text, library, dtype)]
            except _LeftOut as reason:
                counts[f"{LEFT_OUT}{reason}"] += 1
                continue
            answers, kept = len(messages) // 2, sum(count for _, _, count in of_row)
            if not kept or (kept < answers and not self.cut):
                counts[f"{LEFT_OUT}too_long"] += 1
                continue
            examples += [(ids, loss) for ids, loss, _ in of_row]
            has_system = messages[0]["role"] == "system"
            counts += Counter(conversations=1, answers=kept, sequences=len(of_row), cut=int(kept < answers))
            counts += Counter(unrolled=int(len(texts) > 1))
            counts += Counter(system_in_question=int(has_system and self.template.folds_system))
        return examples, counts

    def messages(self, row: Mapping[str, Any]) -> list[Message]:
        """Return the messages of a row of instructions: a conversation, or prompts with their outputs."""
        if row.get("messages") is not None:
            messages: list[Message] = list(row["messages"])
        else:
            turns = [row, *(row.get("more") or ())]
            pairs = (
                ({"role": "user", "content": turn["prompt"]}, {"role": "assistant", "content": turn["output"]})
                for turn in turns
            )
            messages = [{**message, "content": message["content"].strip()} for pair in pairs for message in pair]
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system.strip()}, *messages]
        return messages

    def texts(self, messages: Sequence[Message]) -> list[Text]:
        """Return a conversation as one text, or as one per answer. Raises _LeftOut, whose text is the reason."""
        template = self.template
        if any(template.render.control.search(message["content"]) for message in messages):
            raise _LeftOut("special_token")
        prompts, sequences = [], []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                prompt = template.prompt(messages[:number])
            except Failed:
                raise _LeftOut("template_fails") from None
            if not contains_in_order(prompt, template.folded(messages[:number])):
                raise _LeftOut("template_changes_text")
            prompts.append(prompt)
            sequences.append(prompt + template.lead + message["content"] + template.stop)
        spans = [(len(prompt), len(sequence)) for prompt, sequence in zip(prompts, sequences, strict=True)]
        if all(later.startswith(sequence) for (sequence, later) in zip(sequences, prompts[1:], strict=False)):
            return [Text(sequences[-1], tuple(spans))]
        return [Text(sequence, (span,)) for sequence, span in zip(sequences, spans, strict=True)]

    def encoded(
        self, text: Text, library: Tokenizer, dtype: type[np.unsignedinteger[Any]]
    ) -> Iterator[tuple[Tokens, NDArray[np.bool_], int]]:
        """Yield the example of a text with the number of its answers, the first ones that fit; nothing if none fits.

        Raises _LeftOut if the tokens of a prompt are not the text's.
        """
        encoding = library.encode(text.text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets]
        ids = encoding.ids
        if any(earlier > later for earlier, later in pairwise(starts)):
            raise _LeftOut(SEAM)
        loss = np.zeros(len(ids), np.bool_)
        end = kept = 0
        for start, stop in text.answers:
            first, after = bisect_left(starts, start), bisect_left(starts, stop)
            if after > self.size:
                break
            if library.encode(text.text[:start], add_special_tokens=False).ids != ids[:first]:
                raise _LeftOut(SEAM)
            loss[first:after] = True
            end, kept = after, kept + 1
        if kept:
            yield np.array(ids[:end], dtype), loss[:end], kept


class _LeftOut(Exception):
    """A conversation that gives no example; the text is the reason, a name to count it by."""


def contains_in_order(prompt: str, messages: Sequence[Message]) -> bool:
    """Return whether a prompt contains the texts of messages, those of the turns in order."""
    position = 0
    for message in messages:
        if message["role"] == "system":
            if message["content"] not in prompt:
                return False
            continue
        found = prompt.find(message["content"], position)
        if found < 0:
            return False
        position = found + len(message["content"])
    return True


def check_trainable(counts: Mapping[str, int], where: str) -> None:
    """Raise BadInput if no conversation is left, or if too many are left out at the seam."""
    left_out = {name.removeprefix(LEFT_OUT): count for name, count in counts.items() if name.startswith(LEFT_OUT)}
    total = sum(left_out.values()) + counts.get("conversations", 0)
    if total and not counts.get("conversations"):
        raise BadInput(
            f"{where}: none of {total:,} conversations can be trained on ({format_counts(left_out)}). "
            "Change sft.template or the data."
        )
    at_seam = left_out.get(SEAM, 0)
    if at_seam > max(1, MAX_AT_SEAM * total):
        raise BadInput(
            f"{where}: of {total:,} conversations, {at_seam:,} have a token that joins the prompt and "
            "its answer, which a model"
            " cannot generate. Set sft.template to one that puts a special token between them."
        )


# --- The template that a checkpoint was trained with ---
#
# It is next to the blocks of SFT, and becomes that of the checkpoint. If several trainings of a checkpoint have
# templates, the last one counts.

TEMPLATE, STOP = "chat_template.jinja", "chat_stop.json"


@dataclass(frozen=True)
class TrainedTemplate:
    """A chat template's text, and the token that ends its answers."""

    template: str
    stop_token: str

    @classmethod
    def read(cls, blocks: Path) -> TrainedTemplate | None:
        """Return the template next to blocks; None for blocks without conversations."""
        if not (blocks / TEMPLATE).exists():
            return None
        stop = json.loads((blocks / STOP).read_text(encoding="utf-8"))["stop_token"]
        return cls((blocks / TEMPLATE).read_text(encoding="utf-8"), stop)

    def write(self, blocks: Path) -> None:
        """Write the template next to blocks."""
        (blocks / TEMPLATE).write_text(self.template, encoding="utf-8")
        (blocks / STOP).write_text(json.dumps({"stop_token": self.stop_token}) + "\n", encoding="utf-8")


def copy_trained_template(blocks: Path, others: Path) -> None:
    """Copy the template next to blocks, if there is one, next to others that are made of them."""
    for name in (TEMPLATE, STOP):
        if (blocks / name).exists():
            shutil.copy(blocks / name, others / name)


def add_stop_token(folder: Path, token: int) -> None:
    """Add a token to those that end a generation of the checkpoint in a folder."""
    from transformers import GenerationConfig

    config = GenerationConfig.from_pretrained(folder)
    known = config.eos_token_id
    ids = [] if known is None else [known] if isinstance(known, int) else list(known)
    if token not in ids:
        config.eos_token_id = [*ids, token]
        config.save_pretrained(folder)
