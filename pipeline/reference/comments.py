"""What the comments of a YAML file say of its keys. Pure.

A comment belongs to the key on its line, or to the key below it. The first block of comments is about the whole file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_KEY = re.compile(r"^( *)([A-Za-z_][\w-]*):(?: .*|$)")
_COMMENT = re.compile(r"^ *#(?: (.*))?$")
_BEHIND = re.compile(r"""^(?:[^"'#]|"[^"]*"|'[^']*'|(?<=\S)#)*?\s#\s(.*)$""")


@dataclass
class Comments:
    """head: of the file. of: by the place of a key, such as `choice.budgets`."""

    head: str = ""
    of: dict[str, str] = field(default_factory=dict)


def read(text: str) -> Comments:
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
