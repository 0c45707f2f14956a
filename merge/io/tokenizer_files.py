"""The tokenizer of a merge's result: one of its models', or their union, and the chat template."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput, line_of
from common.validation import read_json
from merge.io.sidecars import vocabulary_files

if TYPE_CHECKING:
    import tokenizers

TEMPLATE, CONFIG, FAST = "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"
NAMED = "additional_chat_templates"
OLDER_TEMPLATE = "chat_template.json"  # of processors
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def union(folders: Sequence[Path], known: Sequence[set[str]]) -> tokenizers.Tokenizer:
    """Build the union: the first folder's tokenizer with the tokens of the others, in their order, at new numbers.

    known: the tokens for which each folder's model has rows. As in mergekit, all of them are added tokens, which match
    before the first tokenizer's merges. Raises BadInput for a folder without tokenizer.json.
    """
    first, *others = [_load(folder) for folder in folders]
    have = set(first.get_vocab())
    marked = {token.content for token in first.get_added_tokens_decoder().values()}
    for folder, other, rows in zip(folders[1:], others, known[1:], strict=True):
        with _one_line(folder / FAST):
            have, marked = _add(first, other, rows, have, marked)
    return first


def _add(
    first: tokenizers.Tokenizer, other: tokenizers.Tokenizer, rows: set[str], have: set[str], marked: set[str]
) -> tuple[set[str], set[str]]:
    """Add the tokens that `first` lacks; return its tokens, and those that were added to any."""
    added = {token.content: token for token in other.get_added_tokens_decoder().values()}
    words = sorted(other.get_vocab().items(), key=lambda item: item[1])
    first.add_tokens([word for word, _ in words if word in rows and word not in have and word not in added])
    for token in added.values():
        if token.content in rows and token.content not in marked:
            (first.add_special_tokens if token.special else first.add_tokens)([token])
    return have | set(first.get_vocab()), marked | added.keys()


def _load(folder: Path) -> tokenizers.Tokenizer:
    import tokenizers

    file = folder / FAST
    if not file.is_file():
        raise BadInput(f"{file}: no such file. Save it there: tokenizer=union needs the tokenizer of every model.")
    with _one_line(file):
        return tokenizers.Tokenizer.from_file(str(file))


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """Describe the library's error for a file that is not a tokenizer: an Exception, or a panic of its Rust code."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadInput(f"{file}: not a tokenizer ({line_of(error)[:120]}). Save it again.") from None


def put_union(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Write the union in place of the copied vocabulary."""
    for file in vocabulary_files(folder):
        file.unlink()
    tokenizer.save(str(folder / FAST))


def chosen_template(wish: str, folders: Iterable[Path]) -> str | None:
    """Return the template that a recipe's `chat_template` selects; for auto, the commonest of the folders, if any."""
    if wish == "auto":
        found = [template.strip() for folder in folders if (template := read_template(folder))]
        return Counter(found).most_common(1)[0][0] if found else None
    return CHATML if wish == "chatml" else wish


def read_template(folder: Path) -> str | None:
    """Read a folder's chat template: a file, or that of a processor or tokenizer; of several, the default one."""
    if (folder / TEMPLATE).is_file():
        try:
            return (folder / TEMPLATE).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"{folder / TEMPLATE}: not UTF-8. Convert it, for example with iconv.") from None
    files = [folder / name for name in (OLDER_TEMPLATE, CONFIG) if (folder / name).is_file()]
    found = next((text for file in files if (text := read_json(file).get("chat_template"))), None)
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) and found else None


def put_template(folder: Path, template: str) -> None:
    """Write the folder's chat template wherever libraries look for it; keep those for other uses (tools, rag)."""
    (folder / OLDER_TEMPLATE).unlink(missing_ok=True)
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    if (folder / CONFIG).is_file():
        config: dict[str, Any] = read_json(folder / CONFIG)
        named: str | list[dict[str, Any]] = template
        if isinstance(others := config.get("chat_template"), list):
            rest = [entry for entry in others if isinstance(entry, dict) and entry.get("name") != "default"]
            named = [{"name": "default", "template": template}, *rest]
            for entry in rest:  # if there is a file for the default template, transformers expects files for the others
                name, other = entry.get("name"), entry.get("template")
                if isinstance(name, str) and re.fullmatch(r"[\w-]+", name) and isinstance(other, str):
                    (folder / NAMED).mkdir(exist_ok=True)
                    (folder / NAMED / f"{name}.jinja").write_text(other, encoding="utf-8")
        text = json.dumps(config | {"chat_template": named}, indent=2, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
