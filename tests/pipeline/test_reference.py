"""The reference pages are those that code and conf/ give, and leave no key out."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import pytest
from pydantic import Field

from common.settings import Fraction, Tokens
from pipeline import sweep
from pipeline.cli import COMMANDS
from pipeline.config import Config
from pipeline.reference import (
    DOCS,
    OF_THE_SCHEMA,
    PAGES,
    bullet,
    generated,
    help_of,
    keys_of,
    plain,
    read_comments,
    root_keys,
    sections,
    type_in_words,
)

KEYS = [*root_keys(), *(key for group in (*sections(), "site") for _, keys in keys_of(group) for key in keys)]


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_what_the_code_gives(name: str) -> None:
    page = DOCS / name
    assert page.read_text(encoding="utf-8") == generated(page, PAGES[name]()), "run python -m pipeline.reference"


def test_every_key_of_a_config_is_on_the_page() -> None:
    """Of real configs, by another way: the keys that validated runs have."""
    names = {key.name for key in KEYS}
    for settings in (["experiment=test"], ["experiment=test", "train=lora", "model=test"], ["experiment=paper"]):
        dumped = sweep.expand(settings, multirun=False).configs[0].model_dump()
        flat = {key for name, value in dumped.items() for key in below(name, value)}
        assert flat - names - set(OF_THE_SCHEMA) == set()
    assert len(names) > 100


def below(name: str, value: object) -> list[str]:
    """The dotted keys of a nested mapping; what has names of its own in it counts as one."""
    own = ("merge.methods", "compute.stage_seconds", "sft.grid", "sft.template_args")
    if not isinstance(value, dict) or name in own:
        return [name]
    return [key for inner, more in value.items() for key in below(f"{name}.{inner}", more)]


def test_every_key_or_its_section_has_a_meaning() -> None:
    explained = {key.name for key in KEYS if key.meaning}
    silent = [
        key.name for key in KEYS if not any(key.name == one or key.name.startswith(f"{one}.") for one in explained)
    ]
    assert silent == []


def test_defaults_are_those_of_the_groups() -> None:
    by_name = {key.name: key for key in KEYS}
    assert (by_name["ct.tokens"].type, by_name["seed"].default) == ("tokens", "0")
    composed = sweep.expand(["experiment=test", "eval=tiny"], multirun=False).configs[0]
    assert by_name["eval.max_chars"].default == str(composed.eval.max_chars)
    assert by_name["train.lora.rank"].type == "whole number above 0" and by_name["train.lora.rank"].default == "64"


def test_comments_belong_to_the_key_of_their_line_or_below() -> None:
    text = """# @package _global_
# About the file:
# two lines.

a: 1   # beside a
# above b,
# two lines
b: 'x # no comment'
c:
  d: "#1"  # beside d
  # above e
  e: {f: 1} # beside e wins

# of nothing, as a blank line follows

g: ߒߞߏ  # தமிழ்
"""
    found = read_comments(text)
    assert found.head == "About the file: two lines."
    assert found.of == {
        "a": "beside a",
        "b": "above b, two lines",
        "c.d": "beside d",
        "c.e": "beside e wins",
        "g": "தமிழ்",
    }
    assert read_comments("# of the only key\nlora: null\n").of == {"lora": "of the only key"}


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Tokens, "tokens"),
        (Tokens | None, "tokens, or null"),
        (Fraction, "number at least 0 and below 1"),
        (Annotated[int, Field(gt=0, le=1024)], "whole number above 0 and at most 1,024"),
        (Literal["cut", "drop"], "`cut` or `drop`"),
        (list[str], "list of text"),
        (dict[str, bool] | None, "mapping of names to true or false, or null"),
        (Config, "section"),
    ],
)
def test_types_are_said_in_words(annotation: object, words: str) -> None:
    assert type_in_words(annotation) == words


def test_text_of_comments_is_no_markup() -> None:
    assert plain("a*b <c> [d] `e*f` docs/how-to/run-on-slurm.md") == (
        r"a\*b \<c> \[d\] `e*f` [docs/how-to/run-on-slurm.md](../how-to/run-on-slurm.md)"
    )
    assert all(len(line) <= 100 for line in bullet("`key` (text)", "word " * 100).splitlines())


def test_the_help_on_the_page_is_that_of_the_command() -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        usage = help_of(name).splitlines()[0]
        assert re.match(rf"Usage: slackmerge {name} ", usage) and usage in page, name
