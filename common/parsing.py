"""JSON and YAML that others wrote: of the shape that is asked for, or refused in one line that names file and key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput, in_one_line

LARGEST = 500_000_000  # bytes of a document; the largest tokenizers have a tenth of it
NODES = 100_000  # of a YAML document, its aliases written out


class WeightIndex(TypedDict):
    """The index of a checkpoint in several files: which file has which tensor."""

    weight_map: dict[str, str]


def read_json(path: Path, shape: Any = dict[str, Any], expected: str = "a file of JSON") -> Any:
    """What a file of JSON holds, of type `shape` to the letter (no text that is a number, no 1.0 for 1).

    Raises BadInput: `expected` says what a file that is missing would be.
    """
    return parse_json(_read(path, expected), str(path), shape)


def parse_json(text: bytes, where: str, shape: Any = dict[str, Any]) -> Any:
    """As `read_json`, of bytes, a document or a line of JSONL; `where` names them in refusals."""
    try:
        return _adapter(shape).validate_json(text, strict=True)
    except ValidationError as error:
        raise BadInput(f"{where}: {_first(error)}") from None


def shaped(value: Any, where: str, shape: Any) -> Any:
    """A value that was read before, if it is of type `shape`. Raises BadInput that names the key."""
    try:
        return _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        raise BadInput(f"{where}: {_first(error)}") from None


def read_yaml(path: Path, expected: str = "a file of YAML") -> Any:
    """What a file of YAML holds. Raises BadInput; also for a key that is given twice."""
    documents = read_yaml_documents(path, expected)
    if len(documents) > 1:
        raise BadInput(f"{path}: expected one YAML document, got {len(documents)}. Write each into a file of its own.")
    return documents[0] if documents else None


def read_yaml_documents(path: Path, expected: str = "a file of YAML") -> list[Any]:
    """As `read_yaml`, all documents that a file of YAML holds."""
    text = _read(path, expected)
    try:
        documents: list[Any] = _parsed(text.decode("utf-8"), lambda text: list(yaml.load_all(text, _NoKeyTwice)))
        return documents
    except (BadInput, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not YAML: {error}") from None


def read_plain_yaml(path: Path, expected: str = "a file of YAML") -> Any:
    """As `read_yaml`, for short files that people write: true and false alone are booleans, and `010` is no octal.

    What YAML 1.1 would read otherwise (on, off, yes, no, dates, numbers that begin with 0) is text.
    """
    try:
        return parse_plain_yaml(_read(path, expected).decode("utf-8"))
    except (BadInput, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """What a text of YAML holds. Raises BadInput that does not name its place."""
    return _parsed(text, lambda text: yaml.load(text, Loader=_NoKeyTwice))


def parse_plain_yaml(text: str) -> Any:
    """As `parse_yaml`, by the rules of `read_plain_yaml`."""
    return _parsed(text, lambda text: yaml.load(text, Loader=_Plain))


def _parsed(text: str, load: Callable[[str], Any]) -> Any:
    """load: by a SafeLoader."""
    try:
        with in_one_line():
            value = load(text)
    except BadInput:
        raise
    except yaml.reader.ReaderError as error:
        raise BadInput(
            f"character {error.character!r} at {error.position} is not allowed in YAML. Remove it."
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" (line {mark.line + 1})" if mark else ""
        raise BadInput(f"{error.problem or error.context}{line}. Correct it there.") from None
    except ValueError as error:
        raise BadInput(str(error)) from None
    except Exception:  # its constructors raise whatever a wrong tag leads them to
        raise BadInput("a tag does not fit its value. Remove the tag.") from None
    _check_values(value)
    return value


def inside(folder: Path, name: str, where: str) -> Path:
    """The file of a folder that a document names. Raises BadInput for a name that leads out of the folder."""
    path = PurePath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
        raise BadInput(f"{where}: expected the name of a file inside {folder}, got {name!r}.")
    return folder / path


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _read(path: Path, expected: str) -> bytes:
    with in_one_line():
        if not path.is_file():
            raise BadInput(f"{path}: no such file; expected {expected}.")
        if (size := path.stat().st_size) > LARGEST:
            raise BadInput(f"{path}: expected {expected} of at most {LARGEST / 1e6:.0f} MB, got {size / 1e6:,.0f} MB.")
        return path.read_bytes()


def sentence(message: str) -> str:
    """Rewrite a message of pydantic, or of a validator of ours, as the end of an error: `must be ...`."""
    text = re.sub(
        r"^(?:Input|List|String|Dictionary|Tuple|Set) should ", "must ", message.removeprefix("Value error, ")
    )
    text = re.sub(r", unable to parse string.*", "", text).replace(" after validation, not ", ", got ")
    text = text if text[:2].isupper() else text[0].lower() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _first(error: ValidationError) -> str:
    """The first fault, with its place in the document."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, fault["loc"]))
    message = sentence(fault["msg"])
    if fault["type"] == "json_invalid":
        reason = fault["msg"].removeprefix("Invalid JSON: ").replace(" at line 1 column ", " at column ")
        return f"not JSON ({reason}). Correct it there."  # `where` has the number of a line of JSONL
    return f"{place}: {message}" if place else message


def _check_values(value: Any) -> None:
    """Refuses what aliases blow up, or make endless, and text that has no UTF-8."""
    left, count = [value], 0
    while left:
        node = left.pop()
        count += 1
        if count > NODES:
            raise BadInput(f"more than {NODES:,} values, with aliases written out. Split the file.")
        if isinstance(node, str) and not node.isascii() and any("\ud800" <= letter <= "\udfff" for letter in node):
            raise BadInput(f"{node!a} is half of a character (a lone surrogate). Write the whole character.")
        if isinstance(node, Mapping):
            left += [*node.keys(), *node.values()]
        elif isinstance(node, list | tuple | set):
            left += node


_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")  # 24:00:00 is 86,400 in YAML 1.1
_PLAIN_BOOLS = frozenset(spelling for word in ("true", "false") for spelling in (word, word.title(), word.upper()))
_OCTAL = re.compile(r"[-+]?0[0-9_]+")


class _NoKeyTwice(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys, and a model disappears; and numbers with colons are of base 60."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0] and _BASE_60.fullmatch(value):
            return str(self.DEFAULT_SCALAR_TAG)
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                key = self.construct_object(key_node)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key} is given twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Plain(_NoKeyTwice):
    """What YAML 1.1 takes for a boolean, an octal number or a date is text, but for true and false."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)
        if kind is not yaml.ScalarNode or not implicit[0]:
            return tag
        is_word = tag == "tag:yaml.org,2002:bool" and value not in _PLAIN_BOOLS
        is_octal = tag == "tag:yaml.org,2002:int" and _OCTAL.fullmatch(value) is not None
        return str(self.DEFAULT_SCALAR_TAG) if is_word or is_octal or tag == "tag:yaml.org,2002:timestamp" else tag
