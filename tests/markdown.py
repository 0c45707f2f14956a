"""README and the pages of docs/ as tests read them: fenced blocks, and the prose between them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, first line number, language, and text; why it is not run, if it is not."""

    page: Path
    line: int
    language: str
    text: str
    exempt: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The commands of the block, each as its words; comments are left out."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        found = [shlex.split(line, comments=True) for line in lines]
        return [words for words in found if words]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, indented ones of lists as well."""
    opened: tuple[int, str, str] | None = None
    inside: list[str] = []
    before = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.match(r"( *)```(.*)$", line)
        if fence and opened is None:
            why = re.fullmatch(r"<!-- not run: (.+) -->", before.strip())
            opened, inside = (number, fence[2].strip(), why[1] if why else ""), []
        elif fence and opened:
            yield Block(page, opened[0], opened[1], "\n".join(inside), opened[2] or None)
            opened = None
        elif opened:
            inside.append(line)
        before = line if line.strip() else before
    assert opened is None, f"{page}: a fence is not closed"


def prose(page: Path) -> list[tuple[int, str]]:
    """The numbered lines of a page that are in no fenced block."""
    lines, within = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if re.match(r" *```", line):
            within = not within
        elif not within:
            lines.append((number, line))
    return lines


BLOCKS = [block for page in PAGES for block in blocks(page)]
