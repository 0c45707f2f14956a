"""Conversations of a user's files or of data sets of the Hub: their formats, known by their columns, in a normal form.

The normal form is a list of messages (`role`, `content`): a system message or none, then questions of `user` and
answers of `assistant` in turn. Texts are stripped. It begins with a question and ends with an answer that is not empty.
A row that is read is `{"messages": [...], "family"}`. A new format is a row of FORMATS, with a function that reads its
turns.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common import hub_data
from common.errors import BadInput
from common.hub_data import Source
from train.data.corpus.sources import matching_files, numbered_rows

if TYPE_CHECKING:
    from datasets import IterableDataset

    from train.data.corpus.hub import ParsedRow, ReadPlan

Message = dict[str, str]  # role: system, user or assistant; content
Turn = tuple[str, str]  # role, text
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",  # OASST
    "assistant": "assistant",
    "gpt": "assistant",  # ShareGPT, as are the following
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
BETWEEN = "\n\n"  # of texts that are joined into one turn


class LeftOut(Exception):
    """A row that gives no conversation; the text is the reason, a name to count it by."""


@dataclass(frozen=True)
class Conversation:
    """Messages in the normal form. shortened: turns were dropped at an empty one, or at the ends."""

    messages: list[Message]
    shortened: bool = False


def normalise_turns(turns: Iterable[Turn]) -> Conversation:
    """Bring turns into the normal form. Raises LeftOut: `roles`, or `no_answer` if nothing is left.

    Consecutive turns of one role are joined. Text before the first question or after the last answer is dropped, and a
    conversation ends before a question or an answer that is empty. An empty system message is kept: some templates
    write their own text instead of none, but not instead of an empty one.
    """
    joined: list[tuple[str, list[str]]] = []
    for role, text in turns:
        if joined and joined[-1][0] == role:
            joined[-1][1].append(text.strip())
        else:
            joined.append((role, [text.strip()]))
    messages = [{"role": role, "content": BETWEEN.join(filter(None, texts))} for role, texts in joined]
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    if any(message["role"] == "system" for message in messages[len(system) :]):
        raise LeftOut("roles")
    talk = messages[len(system) :]
    start = 1 if talk and talk[0]["role"] == "assistant" else 0
    kept: list[Message] = []
    for question, answer in zip(talk[start::2], talk[start + 1 :: 2], strict=False):
        if not question["content"] or not answer["content"]:
            break
        kept += [question, answer]
    if not kept:
        raise LeftOut("no_answer")
    return Conversation([*system, *kept], len(kept) < len(talk))


def message_turns(row: Mapping[str, Any], column: str) -> Iterator[Turn]:
    """Return the turns of a list of messages, whose keys are role and content or from and value."""
    if row.get("tools"):
        raise LeftOut("tools")
    if isinstance(row.get("system"), str) and row["system"].strip():  # next to ShareGPT's conversations
        yield "system", row["system"]
    messages = row[column]
    if isinstance(messages, Mapping):  # a column of structs, as `datasets` gives some: a list for each key
        messages = [dict(zip(messages, values, strict=True)) for values in zip(*messages.values(), strict=False)]
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise LeftOut("no_answer" if messages is None else "malformed")
    for message in messages:
        if not isinstance(message, Mapping):
            raise LeftOut("malformed")
        if message.get("tool_calls") or message.get("function_call"):
            raise LeftOut("tools")
        named = message.get("role", message.get("from"))
        role = ROLES.get(named.lower()) if isinstance(named, str) else None
        if role is None:
            raise LeftOut("tools" if named in ("tool", "function", "function_call", "observation") else "roles")
        yield role, content_text(message.get("content", message.get("value")))


def content_text(content: Any) -> str:
    """Return the text of a message, which may be a list of parts. Raises LeftOut for parts that are no text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise LeftOut("malformed")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise LeftOut("images")
        texts.append(part["text"])
    return BETWEEN.join(texts)


def question_turns(question: str, more: str, answer: str) -> Callable[[Mapping[str, Any]], Iterator[Turn]]:
    """Read one question and its answer from columns; `more` is what the question is about, if anything."""

    def turns(row: Mapping[str, Any]) -> Iterator[Turn]:
        if isinstance(row.get("system"), str) and row["system"].strip():
            yield "system", row["system"]
        texts = (content_text(row[question]).strip(), content_text(row.get(more)).strip())
        yield "user", BETWEEN.join(filter(None, texts))
        yield "assistant", content_text(row[answer])

    return turns


def best_reply(replies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the reply that people ranked best; of unranked ones the first."""
    shown = [reply for reply in replies if not reply.get("deleted")]
    return min(shown, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0), default=None)


def best_path(row: Mapping[str, Any]) -> Iterator[Turn]:
    """Yield the turns of a tree of messages (OASST), at each branch by the best reply."""
    message: Mapping[str, Any] | None = row["prompt"]
    while message is not None:
        role = ROLES.get(str(message.get("role")))
        if role is None:
            raise LeftOut("roles")
        yield role, content_text(message.get("text"))
        message = best_reply(message.get("replies") or ())


def build_tree(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the tree of OASST's messages, one per row: `{"prompt": the first one, with its replies}`.

    Raises LeftOut if the first one is not among them, or has been deleted.
    """
    nodes = {row["message_id"]: {**row, "replies": []} for row in rows}
    roots = []
    for node in nodes.values():
        parent = node.get("parent_id")
        if parent is None:
            roots.append(node)
        elif parent in nodes:
            nodes[parent]["replies"].append(node)
    if len(roots) != 1 or roots[0].get("deleted"):
        raise LeftOut("no_answer")
    return {"prompt": roots[0]}


@dataclass(frozen=True)
class Format:
    """A format of rows. columns: those of its rows; turns: reads the turns of a row, or of a tree of messages."""

    columns: tuple[str, ...]
    turns: Callable[[Mapping[str, Any]], Iterator[Turn]]


TREE, MESSAGE = "oasst_tree", "oasst"  # one tree or one message per row: one format for users
FORMATS = {
    "messages": Format(("messages",), lambda row: message_turns(row, "messages")),
    "sharegpt": Format(("conversations",), lambda row: message_turns(row, "conversations")),
    "alpaca": Format(("instruction", "output"), question_turns("instruction", "input", "output")),
    "dolly": Format(("instruction", "response"), question_turns("instruction", "context", "response")),
    "aya": Format(("inputs", "targets"), question_turns("inputs", "", "targets")),
    "prompts": Format(("prompt", "completion"), question_turns("prompt", "", "completion")),
    MESSAGE: Format(("message_id", "parent_id", "text", "role"), best_path),
    TREE: Format(("message_tree_id", "prompt"), best_path),
}
NAMES = tuple(name for name in FORMATS if name != TREE)


def matching_formats(row: Mapping[str, Any]) -> list[str]:
    """Return the formats whose columns a row has."""
    return [name for name, known in FORMATS.items() if all(column in row for column in known.columns)]


def detect_format(row: Mapping[str, Any], wanted: str, where: str) -> str:
    """Return the name of a row's format in FORMATS. `wanted`: a format, or auto.

    Raises BadInput that begins with `where` for a row that fits no format or, with auto, several.
    """
    fit = matching_formats(row)
    if wanted != "auto":
        fit = [name for name in fit if name.removesuffix("_tree") == wanted]
        if not fit:
            columns = " and ".join(FORMATS[wanted].columns)
            raise BadInput(
                f"{where}: sft.format={wanted} needs the columns {columns}, got {', '.join(map(str, row))}."
                " Set sft.format=auto, or the format of this data."
            )
    if not fit:
        known = "; ".join(f"{name}: {', '.join(form.columns)}" for name, form in FORMATS.items() if name != TREE)
        raise BadInput(f"{where}: must have the columns of a known format ({known}), got {', '.join(map(str, row))}.")
    if len(fit) > 1:
        raise BadInput(
            f"{where}: has the columns of {' and of '.join(fit)}. Set sft.format to the format that you mean."
        )
    return fit[0]


SHORTENED = "shortened"  # conversations that lost turns at an end or at an empty turn
ConversationRow = dict[str, Any]
NumberedConversation = tuple[int, ConversationRow | None, str]  # rows read so far; a conversation or None; its count


def read_conversations(
    rows: Iterable[tuple[int, Mapping[str, Any]]], wanted: str, place: str
) -> Iterator[NumberedConversation]:
    """Yield the conversations of numbered rows of one file, with the number of the last row that each is made of.

    wanted: the format, or auto; place: the file, for messages. OASST has one message per row, and the messages of a
    tree in sequence. Raises BadInput for rows of no known format.
    """
    ahead = iter(rows)
    first = next(ahead, None)
    if first is None:
        return
    rows = itertools.chain([first], ahead)
    name = detect_format(first[1], wanted, f"{place} {first[0]}")
    if name == MESSAGE:
        by_tree = itertools.groupby(rows, key=lambda row: row[1].get("message_tree_id"))
        for tree, group in by_tree:
            messages = list(group)
            yield messages[-1][0], *from_tree([row for _, row in messages], f"{place} {messages[0][0]}", tree)
        return
    for number, row in rows:
        where = f"{place} {number}"
        if detect_format(row, wanted, where) != name:
            raise BadInput(
                f"{where}: must have the format {name}, as the first conversation has. "
                "Put each format into its own file."
            )
        yield number, *from_row(row, name, family_of(row, where))


def from_row(row: Mapping[str, Any], name: str, family: str) -> tuple[ConversationRow | None, str]:
    """Return the conversation of a row of a known format, or None, and the count that it adds to, if any."""
    try:
        conversation = normalise_turns(FORMATS[name].turns(row))
    except LeftOut as reason:
        return None, str(reason)
    return {"messages": conversation.messages, "family": family}, SHORTENED if conversation.shortened else ""


def from_tree(messages: list[Mapping[str, Any]], where: str, tree: Any) -> tuple[ConversationRow | None, str]:
    """Return the conversation of the messages of one tree, as `from_row` does. Raises BadInput for a missing name."""
    if tree is None:
        raise BadInput(f"{where}: has no message_tree_id, which groups the messages of a conversation. Add it.")
    try:
        return from_row(build_tree(messages), TREE, "oasst")
    except LeftOut as reason:
        return None, str(reason)


def family_of(row: Mapping[str, Any], where: str) -> str:
    """Return the family under which a row's examples are counted. Raises BadInput if it is not text."""
    value = row.get("family", "own")
    if not isinstance(value, str):
        raise BadInput(
            f"{where}: the field 'family' must be text, got {json.dumps(value)[:50]}."
            " Write a name, or leave the field out."
        )
    return value


def own_conversations(pattern: str, wanted: str) -> tuple[list[ConversationRow], Counter[str]]:
    """Return the conversations of a user's JSONL files, and counts of those left out (by reason) and shortened.

    Raises BadInput for a file that cannot be read, and if no conversation has an answer.
    """
    conversations: list[ConversationRow] = []
    counts: Counter[str] = Counter()
    for path in matching_files(pattern, "sft.path"):
        if path.suffix != ".jsonl":
            raise BadInput(f"sft.path: expected a .jsonl file with lines such as {{'messages': [...]}}, got {path}.")
        rows = numbered_rows(path, (), "sft.path")
        for number, row, counted in read_conversations(rows, wanted, f"sft.path: {path} line"):
            counts.update([counted] if counted else [])
            conversations += [row] if row else []
            if row and any("\0" in message["content"] for message in row["messages"]):
                raise BadInput(f"sft.path: {path} line {number}: a message contains a NUL character. Remove it.")
    if not conversations:
        raise BadInput(f"sft.path={pattern}: no conversation has an answer ({format_counts(counts)}). Give others.")
    return conversations, counts


def hub_conversations(
    plan: ReadPlan, stream: IterableDataset, before: int, file: str, *, wanted: str
) -> Iterator[ParsedRow]:
    """Yield the conversations of one file of a data set, for `train.data.corpus.hub`."""
    from train.data.corpus.hub import ParsedRow

    where = f"{plan.key}: {plan.source.dataset}" + (f" {file}" if file else "") + " row"
    rows = enumerate(hub_data.read(stream, plan.source, plan.key, before=before, file=file), start=before + 1)
    for read, row, counted in read_conversations(rows, wanted, where):
        if row is None:
            yield ParsedRow(read, None, {}, 0, counted)
        else:
            size = sum(len(message["content"].encode()) for message in row["messages"])
            yield ParsedRow(read, "train", row | {"family": "hub"}, size, counted)


def first_conversations(source: Source, wanted: str, key: str) -> list[ConversationRow]:
    """Return conversations of the first rows of a data set. Raises BadInput if there are none."""
    stream = hub_data.read(hub_data.open_stream(source, key), source, key)
    rows = enumerate(itertools.islice(stream, hub_data.FIRST_ROWS), start=1)
    read = list(read_conversations(rows, wanted, f"{key}: {source.dataset} row"))
    conversations = [row for _, row, _ in read if row]
    if not conversations:
        reasons = format_counts(Counter(counted for _, _, counted in read if counted))
        raise BadInput(
            f"{key}.dataset={source.dataset}: "
            f"no conversation in its first {hub_data.FIRST_ROWS} rows ({reasons}). Choose another data set."
        )
    return conversations


def format_counts(counts: Mapping[str, int]) -> str:
    """Format counts by reason, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in ordered) or "nothing was read"
