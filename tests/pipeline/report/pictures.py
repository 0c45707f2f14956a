"""`python -m tests.pipeline.report.pictures outputs/<experiment> docs`: a finished experiment's page for the README.

Draws the report anew, copies it to <folder>/report-<experiment>.html, and leaves two screenshots in <folder>/images:
page.png (1,280 pixels wide, light) and page-phone.png (390 pixels, dark).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pipeline.report import folders
from tests.pipeline.report.browser import Browser


def pictures(outputs: Path, docs: Path) -> list[Path]:
    """The three files. Takes Chromium (see browser.py)."""
    page = folders.report([outputs]).page
    copied = docs / f"report-{outputs.name}.html"
    (docs / "images").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(page, copied)
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
