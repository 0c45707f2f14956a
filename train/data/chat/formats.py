"""The formats of conversations, recognised by their columns, and their common normal form.

The normal form is a list of messages (`role`, `content`): a system message or none, then questions of `user` and
answers of `assistant` in turn. Texts are stripped. It begins with a question and ends with an answer that says
something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import BadInput

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


def conversation(turns: Iterable[Turn]) -> Conversation:
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
        yield "user", BETWEEN.join(filter(None, (content_text(row[question]).strip(), content_text(row.get(more)).strip())))
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
    """Return the tree of OASST's messages, a row each: `{"prompt": the first one, with its replies}`.

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
    """A format of rows. columns: those of its rows; turns: reads them, None for `oasst`, whose rows are single
    messages.
    """

    columns: tuple[str, ...]
    turns: Callable[[Mapping[str, Any]], Iterator[Turn]]


TREE, MESSAGE = "oasst_tree", "oasst"  # a tree a row, and a message a row: one format for users
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
