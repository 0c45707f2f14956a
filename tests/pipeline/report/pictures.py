"""Pictures of a report's page for the documentation: page.png (1,280 pixels wide, light), page-phone.png (390, dark).

`python -m tests.pipeline.report.pictures outputs/<experiment> docs` draws the report again, copies it and its claims to
docs/<experiment>, and leaves the pictures in docs/images. With `docs/evidence/report.html docs` it takes the pictures
of that page as it is.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pipeline.report import sources
from tests.pipeline.report.browser import Browser


def pictures(outputs: Path, docs: Path) -> list[Path]:
    """The page and the screenshots. Takes Chromium (see browser.py)."""
    drawn = sources.render_folders([outputs])
    for name in (outputs.name, "images"):
        (docs / name).mkdir(parents=True, exist_ok=True)
    copied = docs / outputs.name / drawn.page.name
    shutil.copyfile(drawn.page, copied)
    shutil.copyfile(drawn.claims, copied.with_name(drawn.claims.name))
    return [copied, *screenshots(copied, docs / "images")]


def screenshots(page: Path, folder: Path) -> list[Path]:
    """The first screens of a page, as a desk and as a telephone show it."""
    wide, phone = folder / "page.png", folder / "page-phone.png"
    with Browser(1280, 1500) as browser:
        browser.open(page)
        browser.screenshot(wide)
    with Browser(390, 1500, dark=True) as browser:
        browser.open(page)
        browser.screenshot(phone)
    return [wide, phone]


if __name__ == "__main__":
    given, docs = Path(sys.argv[1]), Path(sys.argv[2])
    made = screenshots(given, docs / "images") if given.suffix == ".html" else pictures(given, docs)
    print(*made, sep="\n")
