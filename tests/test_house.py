"""Files and lines stay short enough to read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("common", "train", "merge", "eval", "pipeline", "models", "benchmarks", "tests")
# A file holds one idea and may be as long as the idea needs; below this bound, and of functions, review decides.
LINES_OF_A_FILE, LINE = 500, 120
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_files_are_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not [f"{path.relative_to(ROOT)}: {count}" for path, count in lines.items() if count > LINES_OF_A_FILE]


def test_lines_are_short() -> None:
    assert not [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > LINE
    ]
