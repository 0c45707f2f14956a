"""`python -m pipeline.reference`: write the generated parts of the reference pages. Needs a clone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.reference import commands_page, configuration_page

DOCS = Path(__file__).parents[2] / "docs" / "reference"
BEGIN, END = "<!-- begin: written by python -m pipeline.reference -->", "<!-- end -->"
PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page.markdown,
    "configuration.md": configuration_page.markdown,
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
