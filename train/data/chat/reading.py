"""A user's files, and rows of a data set of the Hub, as conversations in the normal form.

A row of what is left: `{"messages": [{"role", "content"}, ...], "family"}`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from common import hub_data
from common.errors import BadInput
from common.hub_data import Source
from train.data.chat import formats
from train.data.chat.formats import MESSAGE, LeftOut
from train.data.corpus import text_files

if TYPE_CHECKING:
    from datasets import IterableDataset

    from train.data.corpus.shards import ParsedRow, ReadPlan

SHORTENED = "shortened"  # conversations that lost turns at an end or at an empty turn
Row = dict[str, Any]
NumberedConversation = tuple[
    int, Row | None, str
]  # rows read so far; a conversation, or None; what is counted of it, if anything


def conversations(
    rows: Iterable[tuple[int, Mapping[str, Any]]], wanted: str, place: str
) -> Iterator[NumberedConversation]:
    """Yield the conversations of numbered rows of one file, with the number of the last row that each is made of.

    wanted: the format, or auto; place: the file, for messages. Of OASST's messages, a row each, those of a tree stand
    one after the other. Raises BadInput for rows of no known format.
    """
    ahead = iter(rows)
    first = next(ahead, None)
    if first is None:
        return
    rows = itertools.chain([first], ahead)
    name = formats.detect_format(first[1], wanted, f"{place} {first[0]}")
    if name == MESSAGE:
        by_tree = itertools.groupby(rows, key=lambda row: row[1].get("message_tree_id"))
        for tree, group in by_tree:
            messages = list(group)
            yield messages[-1][0], *from_tree([row for _, row in messages], f"{place} {messages[0][0]}", tree)
        return
    for number, row in rows:
        where = f"{place} {number}"
        if formats.detect_format(row, wanted, where) != name:
            raise BadInput(
                f"{where}: must have the format {name}, as the first conversation has. "
                "Put each format into its own file."
            )
        yield number, *from_row(row, name, family_of(row, where))


def from_row(row: Mapping[str, Any], name: str, family: str) -> tuple[Row | None, str]:
    """Return the conversation of a row of a known format, or None, and what is counted of it."""
    try:
        made = formats.conversation(formats.FORMATS[name].turns(row))
    except LeftOut as reason:
        return None, str(reason)
    return {"messages": made.messages, "family": family}, SHORTENED if made.shortened else ""


def from_tree(messages: list[Mapping[str, Any]], where: str, tree: Any) -> tuple[Row | None, str]:
    """Return the conversation of the messages of one tree, as `from_row`. Raises BadInput for a row without a tree's
    name.
    """
    if tree is None:
        raise BadInput(f"{where}: has no message_tree_id, which groups the messages of a conversation. Add it.")
    try:
        return from_row(formats.build_tree(messages), formats.TREE, "oasst")
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


def own_conversations(pattern: str, wanted: str) -> tuple[list[Row], Counter[str]]:
    """Return the conversations of a user's JSONL files, and counts of those left out (by reason) and shortened.

    Raises BadInput for a file that cannot be read, and where no conversation has an answer.
    """
    made: list[Row] = []
    counts: Counter[str] = Counter()
    for path in text_files.matching_files(pattern, "sft.path"):
        if path.suffix != ".jsonl":
            raise BadInput(f"sft.path: expected a .jsonl file with lines such as {{'messages': [...]}}, got {path}.")
        rows = text_files.numbered_rows(path, (), "sft.path")
        for number, row, counted in conversations(rows, wanted, f"sft.path: {path} line"):
            counts.update([counted] if counted else [])
            made += [row] if row else []
            if row and any("\0" in message["content"] for message in row["messages"]):
                raise BadInput(f"sft.path: {path} line {number}: a message contains a NUL character. Remove it.")
    if not made:
        raise BadInput(f"sft.path={pattern}: no conversation has an answer ({format_counts(counts)}). Give others.")
    return made, counts


def hub_conversations(
    reading: ReadPlan, stream: IterableDataset, before: int, file: str, *, wanted: str
) -> Iterator[ParsedRow]:
    """Yield the conversations of one file of a data set, for `train.data.corpus.shards`."""
    from train.data.corpus.shards import ParsedRow

    where = f"{reading.key}: {reading.source.dataset}" + (f" {file}" if file else "") + " row"
    rows = enumerate(hub_data.read(stream, reading.source, reading.key, before=before, file=file), start=before + 1)
    for read, row, counted in conversations(rows, wanted, where):
        if row is None:
            yield ParsedRow(read, None, {}, 0, counted)
        else:
            size = sum(len(message["content"].encode()) for message in row["messages"])
            yield ParsedRow(read, "train", row | {"family": "hub"}, size, counted)


def first_conversations(source: Source, wanted: str, key: str) -> list[Row]:
    """Return conversations of the first rows of a data set. Raises BadInput if there are none."""
    stream = hub_data.read(hub_data.open_stream(source, key), source, key)
    rows = enumerate(itertools.islice(stream, hub_data.FIRST_ROWS), start=1)
    read = list(conversations(rows, wanted, f"{key}: {source.dataset} row"))
    made = [row for _, row, _ in read if row]
    if not made:
        reasons = format_counts(Counter(counted for _, _, counted in read if counted))
        raise BadInput(
            f"{key}.dataset={source.dataset}: "
            f"no conversation in its first {hub_data.FIRST_ROWS} rows ({reasons}). Choose another data set."
        )
    return made


def format_counts(counts: Mapping[str, int]) -> str:
    """Format counts by reason, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in ordered) or "nothing was read"
