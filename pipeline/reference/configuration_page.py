"""Every key of the configuration in Markdown: type and bounds from the schema, default and meaning from conf/."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common.project import CONF
from pipeline.config import Config
from pipeline.reference.comments import Comments, read
from pipeline.reference.text import bullet
from pipeline.reference.types_in_words import of_field
from pipeline.run.cluster.site import Site

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


def markdown() -> str:
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
    nested, many = _models(field.annotation), get_origin(field.annotation) is dict
    if nested and many and not meaning:  # a section of names, which the head of the file describes
        meaning = _head(files)
    given = values.get(name) if isinstance(values, Mapping) else None
    if not nested or meaning or not isinstance(given, Mapping):
        default = _shown(given) if name in values and not (nested and isinstance(given, Mapping)) else None
        yield Key(f"{prefix}{name}", of_field(field), default, meaning)
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
    return read((CONF / f"{name}.yaml").read_text(encoding="utf-8"))


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
