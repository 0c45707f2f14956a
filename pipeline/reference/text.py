"""Lines of the generated pages: at most 100 characters, and nothing that Markdown would read as markup. Pure."""

from __future__ import annotations

import re
import textwrap

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
