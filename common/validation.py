"""JSON and YAML of users, checked against a type. An error is one line that names file and key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput, suggestion, user_errors

LARGEST = 500_000_000  # bytes of a document; the largest tokenizers have a tenth of it
NODES = 100_000  # of a YAML document, its aliases written out


class WeightIndex(TypedDict):
    """The index of a checkpoint in several files: the file of each tensor."""

    weight_map: dict[str, str]


def read_json(path: Path, schema: Any = dict[str, Any], expected: str = "a file of JSON") -> Any:
    """Read a JSON file of type `schema`, strictly (no text for a number, no 1.0 for 1).

    Raises BadInput; `expected` describes the file that should be there.
    """
    return parse_json(_read(path, expected), str(path), schema)


def parse_json(text: bytes, where: str, schema: Any = dict[str, Any]) -> Any:
    """Parse JSON (a document or a line of JSONL) as `read_json` does; `where` names it in messages."""
    try:
        return _adapter(schema).validate_json(text, strict=True)
    except ValidationError as error:
        raise BadInput(f"{where}: {error_line(error)}") from None


def validate(value: Any, where: str, schema: Any) -> Any:
    """Return a value if it has the type `schema`. Raises BadInput that names the key."""
    try:
        return _adapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        raise BadInput(f"{where}: {error_line(error)}") from None


def read_yaml(path: Path, expected: str = "a file of YAML") -> Any:
    """Read a YAML file. Raises BadInput, also for a key that is given twice."""
    documents = read_yaml_documents(path, expected)
    if len(documents) > 1:
        raise BadInput(f"{path}: expected one YAML document, got {len(documents)}. Write each into a file of its own.")
    return documents[0] if documents else None


def read_yaml_documents(path: Path, expected: str = "a file of YAML") -> list[Any]:
    """Read all documents of a YAML file, as `read_yaml` does."""
    text = _read(path, expected)
    try:
        documents: list[Any] = _parsed(text.decode("utf-8"), lambda text: list(yaml.load_all(text, _NoKeyTwice)))
        return documents
    except (BadInput, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not YAML: {error}") from None


def read_plain_yaml(path: Path, expected: str = "a file of YAML") -> Any:
    """Read a short YAML file that people write: only true and false are booleans, and `010` is not octal.

    Other special values of YAML 1.1 (on, off, yes, no, dates, numbers with a leading 0) are text.
    """
    try:
        return parse_plain_yaml(_read(path, expected).decode("utf-8"))
    except (BadInput, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not YAML: {error}") from None


def parse_yaml(text: str) -> Any:
    """Parse a YAML text. Raises BadInput that does not name the file."""
    return _parsed(text, lambda text: yaml.load(text, Loader=_NoKeyTwice))


def parse_plain_yaml(text: str) -> Any:
    """Parse a YAML text by the rules of `read_plain_yaml`."""
    return _parsed(text, lambda text: yaml.load(text, Loader=_Plain))


def _parsed(text: str, load: Callable[[str], Any]) -> Any:
    """Parse a YAML text with `load`, which uses a SafeLoader."""
    try:
        with user_errors():
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
    """Return the path of a file inside a folder. Raises BadInput for a name that leads out of the folder."""
    path = PurePath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
        raise BadInput(f"{where}: expected the name of a file inside {folder}, got {name!r}.")
    return folder / path


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _read(path: Path, expected: str) -> bytes:
    with user_errors():
        if not path.is_file():
            raise BadInput(f"{path}: no such file; expected {expected}.")
        if (size := path.stat().st_size) > LARGEST:
            raise BadInput(f"{path}: expected {expected} of at most {LARGEST / 1e6:.0f} MB, got {size / 1e6:,.0f} MB.")
        return path.read_bytes()


def error_line(error: ValidationError, data: Mapping[str, Any] | None = None, schema: Any = None) -> str:
    """Describe the first error: key, what is wrong and what to do.

    data: what was validated. With it, the value is shown, and the nearest known key for an unknown one. schema: the
    type of the data. With it, the known keys are those of the type, and otherwise the others that are given.
    """
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "missing":  # a key that is unknown in the same section is probably meant
        unknown = (other for other in errors if other["type"] == "extra_forbidden")
        first = next((other for other in unknown if other["loc"][:-1] == first["loc"][:-1]), first)
    kind, location = first["type"], list(first["loc"])
    message = sentence(first["msg"])
    if kind == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ").replace(" at line 1 column ", " at column ")
        return f"not JSON ({reason}). Correct it there."  # the caller's `where` has the line's number of JSONL
    if data is None:
        key = ".".join(map(str, location))
        return f"{key}: {message}" if key else message
    value = first["input"]
    section, path = _locate(data, location, value if kind != "missing" else None)
    key = ".".join(path)
    if kind == "union_tag_invalid":
        tag = first["ctx"]["discriminator"].strip("'")
        return f"{key}.{tag}={first['ctx']['tag']}: must be one of {first['ctx']['expected_tags']}."
    if kind == "extra_forbidden":
        known = _keys(schema, location[:-1]) or [name for name in section if name != path[-1]]
        return f"{key}: unknown key. {suggestion(path[-1], known)}"
    if kind == "missing":
        return f"{key}: missing. Set a value (null, if the key allows it)."
    is_section = isinstance(value, BaseModel | dict) and kind == "value_error"
    if is_section and not message.startswith("must be "):  # a validator of several keys, which names one of them
        return f"{key}.{message}" if key else message
    if isinstance(value, bool) and kind in ("string_type", "literal_error"):
        message += " YAML reads on, off, yes and no as true or false: quote such a word."
    return f"{key}={'null' if value is None else value}: {message}"


def _locate(data: Any, location: Sequence[int | str], wrong: Any) -> tuple[Any, list[str]]:
    """Return the section that contains the wrong value, and the keys to this value. wrong: None if it is missing.

    pydantic also puts the alternative of a union that it tried into a location: that is no key of the data.
    """

    def has(part: int | str) -> bool:
        if isinstance(data, list):
            return isinstance(part, int) and part < len(data)
        return isinstance(data, Mapping) and part in data

    section, path = data, list[str]()
    for part, following in zip_longest(location, location[1:]):
        if wrong is not None and data == wrong:
            break
        if has(part):
            is_tag = following is not None and has(following) and not isinstance(data[part], Mapping | list)
            if not is_tag:  # of a union, with the name of another key
                section, data, path = data, data[part], [*path, str(part)]
        elif following is None and wrong is None:
            section, path = data, [*path, str(part)]
    return section, path


def _keys(schema: Any, location: Sequence[int | str]) -> list[str]:
    """Return the keys of the section of a type that is at this location; none if it has no fixed ones."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        fields = {field.alias or name: field.annotation for name, field in schema.model_fields.items()}
        if not location:
            return list(fields)
        # pydantic puts the alternative of a union that it tried into a location: that is no key
        return _keys(fields[str(location[0])] if location[0] in fields else schema, location[1:])
    inner, name = get_args(schema), get_origin(schema)
    if name is Annotated:
        return _keys(inner[0], location)
    if name in (dict, list):
        return _keys(inner[-1], location[1:]) if location else []
    return next((keys for each in inner if (keys := _keys(each, location))), [])


def sentence(message: str) -> str:
    """Rewrite a message of pydantic, or of a validator of ours, as the end of an error: `must be ...`."""
    text = re.sub(
        r"^(?:Input|List|String|Dictionary|Tuple|Set) should ", "must ", message.removeprefix("Value error, ")
    )
    text = re.sub(r"a valid dictionary(?: or instance of \w+)?", "a mapping such as {key: value}", text)
    text = re.sub(r", unable to parse string.*", "", text).replace(" after validation, not ", ", got ")
    text = text if text[:2].isupper() else text[0].lower() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _check_values(value: Any) -> None:
    """Reject values that aliases multiply or make endless, and text without a UTF-8 form."""
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
    """A loader that rejects keys given twice, which PyYAML overwrites, and reads no numbers of base 60 (1:30)."""

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
    """A loader that reads only true and false as booleans, and dates and octal numbers of YAML 1.1 as text."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)
        if kind is not yaml.ScalarNode or not implicit[0]:
            return tag
        is_word = tag == "tag:yaml.org,2002:bool" and value not in _PLAIN_BOOLS
        is_octal = tag == "tag:yaml.org,2002:int" and _OCTAL.fullmatch(value) is not None
        return str(self.DEFAULT_SCALAR_TAG) if is_word or is_octal or tag == "tag:yaml.org,2002:timestamp" else tag
