"""Words that slackmerge does not use, and the texts that users and developers read, each with its place."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.markdown import PAGES, ROOT, prose

# rule 5 of the style guide; CONTRIBUTING.md has the rules
NEVER = [
    "anew",
    "likelier",
    "mends?",
    "mended",
    "told",
    "asked of",
    "held against",
    "of a claim by itself",
    "at hand",
    "to be had",
    "goes on",
    "go on",
    "for ever",
    "stands? beside",
    "stands? twice",
    "refuses?",
    "is refused",
    "are refused",
    "whoever",
    "a line a",
    "patient core",
]
PATTERN = re.compile(rf"\b({'|'.join(NEVER)})\b", re.IGNORECASE)
PACKAGES = ("common", "merge", "train", "eval", "pipeline", "slackmerge", "models", "benchmarks")
Line = tuple[str, str]  # where it is, and its text
Texts = Callable[[], Iterator[Line]]


def tracked(*patterns: str) -> list[Path]:
    """Return the files that git tracks."""
    command = ["git", "ls-files", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in (ROOT / name for name in done.stdout.split()) if path.is_file()]


def of_pages() -> Iterator[Line]:
    """Yield the prose of README and docs."""
    for page in PAGES:
        yield from ((_at(page, number), line) for number, line in prose(page))


def of_code() -> Iterator[Line]:
    """Yield docstrings, comments and texts of the packages. A text has a blank: other strings are names and keys."""
    for path in tracked(*(f"{package}/*.py" for package in PACKAGES)):
        source = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield _at(path, token.start[0]), token.string
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield from ((_at(path, node.lineno), line) for line in node.value.splitlines())


def of_configs() -> Iterator[Line]:
    """Yield the comments of conf/ and of the Makefile."""
    for path in tracked("conf/*.yaml", "Makefile"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if match := re.search(r"(?:^|\s)#+ (.*)", line):
                yield _at(path, number), match[1]


def of_templates() -> Iterator[Line]:
    """Yield the templates of the report page."""
    for path in tracked("*.jinja"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            yield _at(path, number), line


def _at(path: Path, number: int) -> str:
    return f"{path.relative_to(ROOT)}:{number}"
