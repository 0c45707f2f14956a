"""Conversations -> examples for packing: token ids, and which of them carry the loss.

An answer is trained as what generation sees and says: the prompt of all turns before it, rendered as for a generation,
then `lead + answer + stop`, with the loss on these three. Where each prompt resumes from the answer before it, a
conversation is one sequence with the loss on all of its answers. Where it does not (a template that drops earlier
thoughts, or moves the system message), it is unrolled: an example an answer. A text is encoded once, as a whole; its
tokens up to an answer must be those of the prompt alone, which is all that a generation has.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput
from train.data.blocks import Tokens
from train.data.chat.formats import Message
from train.data.chat.reading import format_counts
from train.data.chat.template import ChatTemplate, Failed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LEFT_OUT = "left_out."  # before the reason, in the name of a count
SEAM = "seam"  # left out: the first tokens of an answer are not those that a generation would have
MOST_AT_SEAM = 0.01  # share of conversations left out for it, above which template and tokenizer do not fit
Example = tuple[Tokens, NDArray[np.bool_]]  # token ids, and which of them carry the loss


@dataclass(frozen=True)
class Text:
    """One sequence as text, and the characters of its answers: from the end of a prompt to a stop's end."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Masking:
    """The way conversations become examples.

    system: message for those that have none; None: the template's default. size: tokens of a block, the longest
    example. cut: whether longer conversations lose their last turns; else they are left out.
    """

    template: ChatTemplate
    system: str | None
    size: int
    cut: bool

    def examples(
        self, rows: Sequence[Mapping[str, Any]], library: Tokenizer, dtype: type[np.unsignedinteger[Any]]
    ) -> tuple[list[Example], Counter[str]]:
        """Return the examples of rows of instructions in their order, and what was counted.

        Counts: conversations, answers and sequences (of those that are kept), cut, unrolled, system_in_question, and
        those left out, by reason, as `left_out.<reason>`. library: neither cuts nor pads.
        """
        made: list[Example] = []
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
            made += [(ids, loss) for ids, loss, _ in of_row]
            has_system = messages[0]["role"] == "system"
            counts += Counter(conversations=1, answers=kept, sequences=len(of_row), cut=int(kept < answers))
            counts += Counter(unrolled=int(len(texts) > 1))
            counts += Counter(system_in_question=int(has_system and self.template.folds_system))
        return made, counts

    def messages(self, row: Mapping[str, Any]) -> list[Message]:
        """Return the messages of a row of instructions, be it a conversation or prompts with their outputs."""
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
        """Return a conversation as one text, or as one an answer. Raises _LeftOut, whose text is the reason."""
        template = self.template
        if any(template.render.control.search(message["content"]) for message in messages):
            raise _LeftOut("special_token")
        prompts, wholes = [], []
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
            wholes.append(prompt + template.lead + message["content"] + template.stop)
        spans = [(len(prompt), len(whole)) for prompt, whole in zip(prompts, wholes, strict=True)]
        if all(later.startswith(whole) for (whole, later) in zip(wholes, prompts[1:], strict=False)):
            return [Text(wholes[-1], tuple(spans))]
        return [Text(whole, (span,)) for whole, span in zip(wholes, spans, strict=True)]

    def encoded(
        self, text: Text, library: Tokenizer, dtype: type[np.unsignedinteger[Any]]
    ) -> Iterator[tuple[Tokens, NDArray[np.bool_], int]]:
        """Yield the example of a text, if it is not too long, with the number of its answers: the first ones that fit.

        Raises _LeftOut if the tokens of a prompt are not the text's.
        """
        encoding = library.encode(text.text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets]
        ids = encoding.ids
        if any(earlier > later for earlier, later in pairwise(starts)):
            raise _LeftOut(SEAM)
        loss = np.zeros(len(ids), np.bool_)
        end = kept = 0
        for begins, ends in text.answers:
            first, after = bisect_left(starts, begins), bisect_left(starts, ends)
            if after > self.size:
                break
            if library.encode(text.text[:begins], add_special_tokens=False).ids != ids[:first]:
                raise _LeftOut(SEAM)
            loss[first:after] = True
            end, kept = after, kept + 1
        if kept:
            yield np.array(ids[:end], dtype), loss[:end], kept


class _LeftOut(Exception):
    """A conversation that gives no example; the text is the reason, a name to count it by."""


def contains_in_order(prompt: str, messages: Sequence[Message]) -> bool:
    """Return whether a prompt contains the texts of messages, those of the turns in order."""
    place = 0
    for message in messages:
        if message["role"] == "system":
            if message["content"] not in prompt:
                return False
            continue
        found = prompt.find(message["content"], place)
        if found < 0:
            return False
        place = found + len(message["content"])
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
    if at_seam > max(1, MOST_AT_SEAM * total):
        raise BadInput(
            f"{where}: of {total:,} conversations, {at_seam:,} have a token that joins the prompt and "
            "its answer, which a model"
            " cannot generate. Set sft.template to one that puts a special token between them."
        )
