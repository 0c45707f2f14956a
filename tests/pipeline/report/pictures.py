"""`python -m tests.pipeline.report.pictures outputs/<experiment> docs`: a finished experiment's page for the README.

Draws the report anew, copies it and its claims to <folder>/<experiment>, and leaves two screenshots in <folder>/images:
page.png (1,280 pixels wide, light) and page-phone.png (390 pixels, dark).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pipeline.report import folders
from tests.pipeline.report.browser import Browser


def pictures(outputs: Path, docs: Path) -> list[Path]:
    """The page and the screenshots. Takes Chromium (see browser.py)."""
    drawn = folders.report([outputs])
    for name in (outputs.name, "images"):
        (docs / name).mkdir(parents=True, exist_ok=True)
    copied = docs / outputs.name / drawn.page.name
    shutil.copyfile(drawn.page, copied)
    shutil.copyfile(drawn.claims, copied.with_name(drawn.claims.name))
    wide, phone = docs / "images" / "page.png", docs / "images" / "page-phone.png"
    with Browser(1280, 1500) as browser:
        browser.open(copied)
        browser.screenshot(wide)
    with Browser(390, 1500, dark=True) as browser:
        browser.open(copied)
        browser.screenshot(phone)
    return [copied, wide, phone]


if __name__ == "__main__":
    print(*pictures(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
