"""The generated parts of docs/reference/: the help of every command, and every key of the config.

`python -m pipeline.reference`, in a clone, writes them between two marks of each page: from the commands, conf/ and the
schema of the config. tests/pipeline/test_reference.py fails if a page is not up to date.
"""

from __future__ import annotations

import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from common.project import CONF, ROOT
from common.units import parse_bytes, parse_tokens
from pipeline.cli import COMMANDS, choices, command_of
from pipeline.config import Config
from pipeline.config.cell import iso_date
from pipeline.config.scoring import known_arm, role_of
from pipeline.run.cluster.site import Site, hours

# --- lines of Markdown: at most 100 characters, and no markup in plain text

WIDTH = 100
_CODE = re.compile(r"(`[^`]*`)")


def bullet(name: str, said: str) -> str:
    """One item of a list: a name in Markdown, and plain text about it."""
    return paragraph(f"{name}: {plain(said)}" if said else name, "- ", "  ")


def paragraph(text: str, first: str = "", others: str = "") -> str:
    """Markdown wrapped to the width of a page."""
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def plain(text: str) -> str:
    """Plain text as Markdown: pages of docs/ become links, and markup is escaped outside of code."""
    parts = _CODE.split(text)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    text = re.sub(r"([*<\[\]])", r"\\\1", text)
    return re.sub(r"\bdocs/([\w/-]+)\.md\b", r"[docs/\1.md](../\1.md)", text)


# --- what the comments of a YAML file say of its keys
#
# A comment belongs to the key on its line, or to the key below it. The first block is about the whole file.

_KEY = re.compile(r"^( *)([A-Za-z_][\w-]*):(?: .*|$)")
_COMMENT = re.compile(r"^ *#(?: (.*))?$")
_BEHIND = re.compile(r"""^(?:[^"'#]|"[^"]*"|'[^']*'|(?<=\S)#)*?\s#\s(.*)$""")


@dataclass
class Comments:
    """head: of the file. of: by the place of a key, such as `choice.budgets`."""

    head: str = ""
    of: dict[str, str] = dataclass_field(default_factory=dict)


def read_comments(text: str) -> Comments:
    """The comments of a YAML file of nested mappings."""
    found = Comments()
    above: list[str] = []
    place: list[tuple[int, str]] = []
    top = True  # within the first block
    for line in text.splitlines():
        if comment := _COMMENT.match(line):
            above.append(comment[1] or "")
            continue
        if top and above:
            found.head, above = _joined(above), [] if not _KEY.match(line) or _behind(line) else above
        top = False
        if key := _KEY.match(line):
            indent = len(key[1])
            place = [(depth, name) for depth, name in place if depth < indent] + [(indent, key[2])]
            if said := _behind(line) or _joined(above):
                found.of[".".join(name for _, name in place)] = said
        above = []
    return found


def _behind(line: str) -> str:
    match = _BEHIND.match(line)
    return match[1].strip() if match else ""


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines if not line.startswith("@package")).strip()


# --- the type and bounds of a key, in words

NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
BY_VALIDATOR = {
    parse_tokens: "tokens",
    parse_bytes: "bytes",
    iso_date: "date",
    hours: "hours, or HH:MM:SS",
    known_arm: "a checkpoint",
    role_of: "a checkpoint",
}
BOUNDS = ((Gt, "gt", "above"), (Ge, "ge", "at least"), (Lt, "lt", "below"), (Le, "le", "at most"))


def type_of_field(field: FieldInfo) -> str:
    """The type of a field, such as `number, above 0 and below 1`."""
    return type_in_words(field.annotation, field.metadata)


def type_in_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in words; `metadata` is what pydantic checks beside it."""
    metadata = list(metadata)
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        metadata += [each for one in more for each in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return type_in_words(inner, metadata)
    for one in metadata:
        if isinstance(one, (BeforeValidator, AfterValidator)) and one.func in BY_VALIDATOR:
            bounds = [other for other in metadata if other != Gt(0)] if one.func is parse_tokens else []
            return " ".join([BY_VALIDATOR[one.func], *_bounds(bounds)])  # type: ignore[index]
    return " ".join([_plain(annotation), *_bounds(metadata)])


def _plain(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _either([f"`{value}`" for value in arguments])
    if origin in (Union, types.UnionType):
        return ", or ".join(type_in_words(one) for one in arguments)
    if origin in (list, tuple):
        return f"list of {type_in_words(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {type_in_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return NAMES.get(annotation, "any value")


def _either(options: list[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"


def _bounds(metadata: Iterable[Any]) -> list[str]:
    limits = [
        f"{word} {_number(getattr(one, name))}"
        for kind, name, word in BOUNDS
        for one in metadata
        if isinstance(one, kind)
    ]
    return [" and ".join(limits)] if limits else []


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


# --- the page of the configuration

ROOT_FILE = "config"
# The file of a group that describes its keys, if it is not the default. Top level: an experiment sets `name`.
CLEAREST = {"language": "mine", "corpus": "files", "train": "lora"}
NAMED_BY = "experiment/tiny"
OF_THE_SCHEMA = ("ct.whole_text",)  # what the schema sets and nobody gives
WITHOUT_KEYS = ("experiment", "arm")  # groups that set keys of others


@dataclass(frozen=True)
class Key:
    """One key. default: as YAML writes it; None: the experiment or the user gives it. meaning: empty if unknown."""

    name: str
    type: str
    default: str | None
    meaning: str


def configuration_page() -> str:
    """All groups: their choices, and their keys."""
    parts = [f"## Top level\n\n{_listed(root_keys())}"]
    for group in [*sections(), "site", *WITHOUT_KEYS]:
        parts.append(f"## {group}\n\n{_choices(group)}".rstrip())
        parts += [f"{intro}{_listed(keys)}" for intro, keys in keys_of(group) if keys]
    return "\n\n".join(parts) + "\n"


def sections() -> list[str]:
    """The groups whose keys are those of a section of the config."""
    return [name for name in Config.model_fields if (CONF / name).is_dir()]


def root_keys() -> list[Key]:
    """The keys that belong to no group. An experiment of a section's name gives its values, as for `adapt`."""
    values = _values(ROOT_FILE)
    found: list[Key] = []
    for name, field in Config.model_fields.items():
        if (CONF / name).is_dir():
            continue
        experiments = [one for one in (f"experiment/{name}", NAMED_BY) if (CONF / f"{one}.yaml").is_file()]
        files = [_read(one) for one in (ROOT_FILE, *experiments)]
        found += _keys_of_field(name, field, "", files, values, "")
        if values.get(name) == "null":
            for model in _models(field.annotation):
                found += _keys(model, f"{name}.", files, _values(experiments[0]).get(name) or {}, f"{name}.")
    return list({key.name: key for key in found}.values())


def keys_of(group: str) -> Iterator[tuple[str, list[Key]]]:
    """The keys of a group; of a corpus for each kind of source, with a line that names its choices."""
    if group in WITHOUT_KEYS:
        return
    schemas = [Site] if group == "site" else _models(Config.model_fields[group].annotation)
    for schema in schemas:
        names = _choices_of(group, schema) if len(schemas) > 1 else _names(group)
        files = [_read(f"{group}/{name}") for name in names]
        values = _values(f"{group}/{names[0]}")
        intro = f"Keys of {' and '.join(f'`{group}={name}`' for name in names)}:\n\n" if len(schemas) > 1 else ""
        prefix = "" if group == "site" else f"{group}."
        keys = list(_keys(schema, prefix, files, values.get(group) or values, ""))
        # what each class of jobs may set for itself stands at the top of a site already
        yield (
            intro,
            [key for key in keys if key.name not in OF_THE_SCHEMA and (group != "site" or key.meaning or key.default)],
        )


def _keys(
    schema: type[BaseModel], prefix: str, files: Sequence[Comments], values: Mapping[str, Any], place: str
) -> Iterator[Key]:
    """The keys of a section and of those in it. place: of the section in its group's files."""
    for name, field in schema.model_fields.items():
        for key in _keys_of_field(name, field, prefix, files, values, place):
            alone = not place and len(schema.model_fields) == 1 and key.name == f"{prefix}{name}"
            yield replace(key, meaning=_head(files)) if alone and not key.meaning else key


def _keys_of_field(
    name: str, field: FieldInfo, prefix: str, files: Sequence[Comments], values: Mapping[str, Any], place: str
) -> Iterator[Key]:
    """One key, and those in it if it is a section."""
    at = f"{place}{name}"
    said = (found.of.get(at) or found.of.get(f"{prefix}{name}") for found in files)
    meaning = next((text for text in said if text), "")
    kinds = (field.annotation, *get_args(field.annotation))  # of an optional section too
    nested, many = _models(field.annotation), any(get_origin(kind) is dict for kind in kinds)
    if nested and many and not meaning:  # a section of names, which the head of the file describes
        meaning = _head(files)
    given = values.get(name) if isinstance(values, Mapping) else None
    if not nested or meaning or not isinstance(given, Mapping):
        default = _shown(given) if name in values and not (nested and isinstance(given, Mapping)) else None
        yield Key(f"{prefix}{name}", type_of_field(field), default, meaning)
    for model in nested:
        below = given if isinstance(given, Mapping) and not many else {}
        inner = f"{name}.NAME." if many else f"{name}."
        yield from _keys(model, f"{prefix}{inner}", files, below, f"{at}.")


def _head(files: Sequence[Comments]) -> str:
    return next((found.head for found in files if found.head), "")


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type has in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, dict):
        return [model for one in get_args(annotation) for model in _models(one)]
    return []


def _choices_of(group: str, schema: type[BaseModel]) -> list[str]:
    """The choices of a group whose `source` is one of a schema's."""
    annotation = schema.model_fields["source"].annotation
    sources = get_args(annotation) if get_origin(annotation) is Literal else ()
    return [name for name in _names(group) if _values(f"{group}/{name}").get("source") in sources]


def _names(group: str) -> list[str]:
    """The choices of a group, the one whose file describes the keys first."""
    names = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    defaults = [one[group] for one in _values(ROOT_FILE)["defaults"] if isinstance(one, dict) and group in one]
    first = CLEAREST.get(group) or next((name for name in defaults if name in names), names[0])
    return [first, *(name for name in names if name != first)]


@cache
def _read(name: str) -> Comments:
    return read_comments((CONF / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def _values(name: str) -> Mapping[str, Any]:
    node = yaml.compose((CONF / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    return _written(node) if node is not None else {}


def _written(node: yaml.Node) -> Any:
    """A value with its scalars as they are written, such as 7e-4 and null."""
    if isinstance(node, yaml.MappingNode):
        return {_written(key): _written(value) for key, value in node.value}
    return [_written(value) for value in node.value] if isinstance(node, yaml.SequenceNode) else node.value


def _shown(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_shown(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


def _choices(group: str) -> str:
    """The files of a group, each with what it says of itself."""
    lines = []
    for name in sorted(_names(group)):
        if group == "language":
            lines.append(bullet(f"`{group}={name}`", _values(f"{group}/{name}")[group]["name"]))
            continue
        said = re.split(r"(?<=[.;])(?<!al\.) ", _read(f"{group}/{name}").head, maxsplit=1)[0].rstrip(";")
        lines.append(bullet(f"`{group}={name}`" if group != "arm" else f"`arm=[{name}]`", said))
    return "\n".join(lines)


def _listed(keys: Sequence[Key]) -> str:
    lines = []
    for key in keys:
        default = "" if key.default is None or len(key.default) > 60 else f"; default `{key.default}`"
        lines.append(bullet(f"`{key.name}` ({key.type}{default})", key.meaning))
    return "\n".join(lines)


# --- the page of the commands

HELP_WIDTH = 98
REPEATED = "\nGroups and their choices:\n"  # what the help of several commands ends with


def commands_page() -> str:
    """A table of the commands, and the help of each; groups and common settings once."""
    table = ["| Command | Does |", "|---|---|"]
    table += [f"| [`slackmerge {name}`](#{name}) | {summary.rstrip('.')} |" for name, (summary, _) in COMMANDS.items()]
    helps = {name: help_of(name) for name in COMMANDS}
    parts = ["\n".join(table)]
    parts += [f"## {name}\n\n```text\n{text.partition(REPEATED)[0].rstrip()}\n```" for name, text in helps.items()]
    groups = [bullet(f"`{group}`", ", ".join(names)) for group, names in choices().items()]
    parts.append("## Groups and their choices\n\n" + "\n".join(groups))
    return "\n\n".join(parts) + "\n"


def help_of(name: str) -> str:
    """What a command prints for --help, at one width."""
    command = command_of(name)
    settings = {**command.context_settings, "terminal_width": HELP_WIDTH, "max_content_width": HELP_WIDTH}
    context = click.Context(command, info_name=f"slackmerge {name}", **settings)
    return command.get_help(context)


# --- write the pages

DOCS = ROOT / "docs" / "reference"
BEGIN, END = "<!-- begin: written by python -m pipeline.reference -->", "<!-- end -->"
PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "configuration.md": configuration_page,
}


def generated(page: Path, markdown: str) -> str:
    """The text of a page with `markdown` between its two marks."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{markdown}\n{END}{after}"


def main() -> int:
    """Write the pages; return the exit code."""
    for name, markdown in PAGES.items():
        page = DOCS / name
        page.write_text(generated(page, markdown()), encoding="utf-8")
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
