"""The added tokens that a folder's chat template writes, such as the marks around turns."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from common.errors import BadInput, line_of
from common.validation import read_json
from merge.io.tokenizer_files import FAST, read_template

QUESTION, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "c"}
TALKS = ([SYSTEM, QUESTION, ANSWER, QUESTION], [QUESTION, ANSWER, QUESTION], [QUESTION, ANSWER], [QUESTION])


def template_tokens(folder: Path) -> tuple[str, ...]:
    """Added tokens that stand in the text of the chat template or in what it makes of a conversation.

    The text alone would miss a mark that the template puts together (`'<|' + role + '|>'`), a conversation alone those
    of tools. Raises BadInput where there is no template, no tokenizer.json, or no such token.
    """
    text, file = read_template(folder), folder / FAST
    if text is None:
        raise BadInput(f"{folder}: has no chat template. Name a chat model, or leave special_rows out.")
    if not file.is_file():
        raise BadInput(f"{file}: missing, but special_rows needs the names of its special tokens. Add it.")
    added = [str(token["content"]) for token in read_json(file).get("added_tokens") or ()]
    written = f"{text}\n{_conversations(folder, text, file.stat().st_mtime_ns)}"
    found = tuple(token for token in added if token.strip() and token in written)
    if not found:
        raise BadInput(f"{folder}: its chat template writes none of its special tokens. Leave special_rows out.")
    return found


@cache
def _conversations(folder: Path, text: str, changed: int) -> str:
    """What the template makes of conversations, with a system message where it takes one.

    text, changed: of template and tokenizer; a folder whose files are the same is read once.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    said, why = [], ""
    for talk in TALKS:
        asks = talk[-1] is QUESTION
        try:
            said.append(str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=asks)))
        except Exception as error:  # whatever a template raises for roles that it does not take
            why = line_of(error)
    if not said:
        raise BadInput(f"{folder}: its chat template fails for every conversation ({why[:200]}). Repair it.")
    return "\n".join(said)
