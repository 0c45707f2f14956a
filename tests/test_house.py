"""Files, functions and lines stay short enough to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("common", "train", "merge", "eval", "pipeline", "models", "benchmarks", "tests")
# A file holds one idea and may be as long as the idea needs; review decides below this bound.
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, LINE = 500, 60, 120
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Every function of a file with its number of lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_are_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not [f"{path.relative_to(ROOT)}: {count}" for path, count in lines.items() if count > LINES_OF_A_FILE]


def test_functions_are_short() -> None:
    sizes = [(path, name, size) for path in FILES for name, size in functions(path)]
    assert not [f"{path.relative_to(ROOT)} {name}: {size}" for path, name, size in sizes if size > LINES_OF_A_FUNCTION]


def test_lines_are_short() -> None:
    assert not [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > LINE
    ]
