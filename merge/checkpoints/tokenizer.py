"""Tokenizers of checkpoint folders: their vocabularies, their union, and their chat templates."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput, line_of, user_errors
from common.validation import read_json
from merge.checkpoints.sidecars import vocabulary_files

if TYPE_CHECKING:
    import tokenizers

_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
TEMPLATE, CONFIG, FAST = "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"
NAMED = "additional_chat_templates"
OLDER_TEMPLATE = "chat_template.json"  # of processors
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "c"}
TALKS = ([SYSTEM, QUESTION, ANSWER, QUESTION], [QUESTION, ANSWER, QUESTION], [QUESTION, ANSWER], [QUESTION])


class AddedToken(TypedDict):
    id: int
    content: str


class Model(TypedDict):
    vocab: dict[str, int] | list[tuple[str, float]]  # of Unigram models: pieces in the order of their ids, with scores
    merges: NotRequired[list[str | tuple[str, str]] | None]  # older versions write "a b", newer ones ["a", "b"]


class TokenizerFile(TypedDict):
    """The keys of tokenizer.json that we read."""

    model: Model
    added_tokens: NotRequired[list[AddedToken] | None]


class Tekken(TypedDict):
    """The keys of mistral-common's tekken.json that we read: tokens as bytes in base64, after the control tokens."""

    config: dict[str, Any]
    vocab: list[dict[str, Any]]


@dataclass(frozen=True)
class Vocabulary:
    """ids of all tokens, including added ones; merges in order, if the tokenizer has any and its file lists them.

    whole: whether the file lists every token (a sentencepiece model lacks those that were added later).
    """

    ids: dict[str, int]
    merges: list[tuple[str, ...]] | None
    whole: bool

    def difference(self, other: Vocabulary) -> str | None:
        """Describe how `other` differs; None if it is equal."""
        if self.whole and other.whole:
            for token, number in self.ids.items():
                if other.ids.get(token) != number:
                    return f"token {token!r} is {other.ids.get(token, 'not there')}, not {number}"
            for token, number in other.ids.items():
                if token not in self.ids:
                    return f"token {token!r} is {number}, not there"
        else:
            names = {number: token for token, number in self.ids.items()}
            for token, number in other.ids.items():
                if names.get(number, token) != token:
                    return f"id {number} is {token!r}, not {names[number]!r}"
        if self.merges is not None and other.merges is not None and self.merges != other.merges:
            return "the merges differ"
        return None


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the vocabulary of a checkpoint folder; None without a tokenizer. Raises BadInput for a damaged file."""
    with user_errors():
        if (folder / "tokenizer.json").is_file():
            return _fast(folder / "tokenizer.json")
        if (folder / "vocab.json").is_file():
            ids: dict[str, int] = read_json(folder / "vocab.json", dict[str, int])
            return Vocabulary(ids | _added(folder), None, True)
        if (folder / "vocab.txt").is_file():
            return Vocabulary(_lines(folder / "vocab.txt") | _added(folder), None, True)
        for name in _PIECES:
            if (folder / name).is_file():
                ids = {piece: number for number, piece in enumerate(_pieces(folder / name))}
                return Vocabulary(ids | _added(folder), None, False)
        for file in sorted(folder.glob("tekken*.json")):
            return Vocabulary(_tekken(file), None, False)
        for file in sorted(folder.glob("*.tiktoken")):
            return Vocabulary(_tiktoken(file) | _added(folder), None, False)
    return None


def _fast(file: Path) -> Vocabulary:
    data: TokenizerFile = read_json(file, TokenizerFile)
    vocab, merges = data["model"]["vocab"], data["model"].get("merges")
    ids = dict(vocab) if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}
    ids |= {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in merges or ()]
    return Vocabulary(ids, pairs or None, True)


def _added(folder: Path) -> dict[str, int]:
    """Read tokens that were added to a tokenizer of the older kind."""
    file = folder / "added_tokens.json"
    added: dict[str, int] = read_json(file, dict[str, int]) if file.is_file() else {}
    return added


def _lines(file: Path) -> dict[str, int]:
    """Read one token per line, in the order of their ids."""
    try:
        words = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise BadInput(f"{file}: not UTF-8. Download it again.") from None
    return {word.removesuffix("\r"): number for number, word in enumerate(words) if word or number + 1 < len(words)}


def _tekken(file: Path) -> dict[str, int]:
    data: Tekken = read_json(file, Tekken)
    controls, size = (data["config"].get(key) for key in ("default_num_special_tokens", "default_vocab_size"))
    first = controls if isinstance(controls, int) else 0
    count = size - first if isinstance(size, int) else len(data["vocab"])
    return {str(entry.get("token_bytes")): first + number for number, entry in enumerate(data["vocab"][:count])}


def _tiktoken(file: Path) -> dict[str, int]:
    """Read lines of base64 and rank."""
    ids = {}
    for line in _lines(file):
        token, _, rank = line.partition(" ")
        if not rank.isdecimal():
            raise BadInput(f"{file}: not a table of tokens and ranks. Download it again.")
        ids[token] = int(rank)
    return ids


def _pieces(file: Path) -> list[str]:
    """Read the pieces of a sentencepiece model, by id."""
    from google.protobuf.message import DecodeError
    from transformers.utils import sentencepiece_model_pb2_new

    model = sentencepiece_model_pb2_new.ModelProto()  # type: ignore[attr-defined]  # created at import
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise BadInput(f"{file}: not a sentencepiece model. Download it again.") from None
    return [piece.piece for piece in model.pieces]


def union(folders: Sequence[Path], known: Sequence[set[str]]) -> tokenizers.Tokenizer:
    """Build the union: the first folder's tokenizer with the tokens of the others, in their order, at new numbers.

    known: the tokens for which each folder's model has rows. A vocabulary that continues the first one's BPE gives its
    merges too, so that it splits text as before. As in mergekit, all other tokens are added tokens, which match before
    the merges. Raises BadInput for a folder without tokenizer.json.
    """
    first, *others = [_load(folder) for folder in folders]
    for folder, other, rows in zip(folders[1:], others, known[1:], strict=True):
        with _one_line(folder / FAST):
            first = _continued(first, other, rows) or first
    have = set(first.get_vocab())
    marked = {token.content for token in first.get_added_tokens_decoder().values()}
    for folder, other, rows in zip(folders[1:], others, known[1:], strict=True):
        with _one_line(folder / FAST):
            have, marked = _add(first, other, rows, have, marked)
    return first


def _continued(first: tokenizers.Tokenizer, other: tokenizers.Tokenizer, rows: set[str]) -> tokenizers.Tokenizer | None:
    """Return `first` with the new tokens and merges of `other`, if that continues its BPE and has rows for them all."""
    import tokenizers

    ours, theirs = (json.loads(each.to_str()) for each in (first, other))
    alike = all(ours.get(part) == theirs.get(part) for part in ("normalizer", "pre_tokenizer"))
    if not alike or not all(each["model"].get("type") == "BPE" for each in (ours, theirs)):
        return None
    (old, merges), (more, longer) = ((part["model"]["vocab"], part["model"]["merges"]) for part in (ours, theirs))
    names = first.get_vocab()
    added = {token.content for token in other.get_added_tokens_decoder().values()}
    new = [token for token in sorted(more, key=more.__getitem__) if token not in names and token not in added]
    is_continued = len(longer) > len(merges) and longer[: len(merges)] == merges and old.keys() <= more.keys() | added
    if not (is_continued and new and rows.issuperset(new)):
        return None
    # all tokens, as in train/vocabulary.py: the numbers of added ones would move otherwise
    numbered = names | {token: number for number, token in enumerate(new, max(names.values()) + 1)}
    ours["model"] |= {"vocab": numbered, "merges": longer}
    return tokenizers.Tokenizer.from_str(json.dumps(ours))


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
        templates = [template.strip() for folder in folders if (template := read_template(folder))]
        return Counter(templates).most_common(1)[0][0] if templates else None
    return CHATML if wish == "chatml" else wish


def read_template(folder: Path) -> str | None:
    """Read a folder's chat template: a file, or that of a processor or tokenizer; of several, the default one."""
    if (folder / TEMPLATE).is_file():
        try:
            return (folder / TEMPLATE).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"{folder / TEMPLATE}: not UTF-8. Convert it, for example with iconv.") from None
    files = [folder / name for name in (OLDER_TEMPLATE, CONFIG) if (folder / name).is_file()]
    template = next((text for file in files if (text := read_json(file).get("chat_template"))), None)
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None


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


def template_tokens(folder: Path) -> tuple[str, ...]:
    """Return the added tokens in the text of the chat template or in a conversation that it renders.

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
    tokens = tuple(token for token in added if token.strip() and token in written)
    if not tokens:
        raise BadInput(f"{folder}: its chat template writes none of its special tokens. Leave special_rows out.")
    return tokens


@cache
def _conversations(folder: Path, text: str, changed: int) -> str:
    """Render conversations by the template, with a system message if the template takes one.

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
