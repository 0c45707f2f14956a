"""Which of our modules imports which, read from their files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "train", "merge", "eval", "pipeline")


def modules(*packages: str) -> dict[str, Path]:
    """Return the files of packages by the names of their modules."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The known modules that a file imports when it runs, inside functions too; what types alone need is left out."""
    tree = parsed(path)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known and not node.level:
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in within)


def strings(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The known modules that a file names in a string, as tests do that start a module as a program."""
    by_file = {file.name: name for name, file in known.items() if name.startswith("tests.")}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in known:
                yield node.value
            elif (file := node.value.rpartition("/")[2]) in by_file:
                yield by_file[file]
