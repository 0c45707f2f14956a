"""Real text in many scripts, from packages, read at run time; nothing of it is in this repository.

LibreOffice's help and interface strings (Debian packages, MPL-2.0), and Kashmiri commentaries on the Quran (PyPI
`kaeshur-quran`).
"""

from __future__ import annotations

import gettext
import html
import json
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import regex

PARAGRAPH = re.compile(r"<p id=\"par_[^>]*>(.*?)</p>", re.DOTALL)
TAG = re.compile(r"<[^>]+>")


def help_text(package: Path) -> Iterator[str]:
    """The paragraphs of an unpacked libreoffice-help package, in the order of their pages."""
    for page in sorted(package.rglob("*.html")):
        for paragraph in PARAGRAPH.findall(page.read_text(encoding="utf-8")):
            yield " ".join(html.unescape(TAG.sub("", paragraph)).split())


def interface_strings(package: Path) -> Iterator[str]:
    """The translated strings of an unpacked libreoffice-l10n package."""
    for catalogue in sorted(package.rglob("*.mo")):
        with catalogue.open("rb") as file:
            translated = gettext.GNUTranslations(file)
        yield from (str(text) for text in translated._catalog.values() if text)  # type: ignore[attr-defined]


def kashmiri(wheel: Path) -> Iterator[str]:
    """Every text of some length in the wheel of kaeshur-quran."""

    def strings(node: object) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict | list):
            for part in node.values() if isinstance(node, dict) else node:
                yield from strings(part)

    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".json") and "/tafasir/" in name:
                yield from (" ".join(TAG.sub(" ", text).split()) for text in strings(json.loads(archive.read(name))))


def documents(texts: Iterator[str], script: str, bytes_wanted: int, document_bytes: int = 4000) -> list[str]:
    """Documents of about `document_bytes` of the texts that are mostly in a script (Unicode's name), each text once."""
    own, letters = regex.compile(rf"\p{{Script={script}}}"), regex.compile(r"\p{L}")
    joined: list[str] = [""]
    for text in dict.fromkeys(texts):
        if len(text) > 20 and 10 * len(own.findall(text)) > 8 * len(letters.findall(text)):
            joined[-1] = f"{joined[-1]} {text}".strip()
            if len(joined[-1].encode()) > document_bytes:
                joined.append("")
        if sum(map(len, joined)) > bytes_wanted:
            break
    return [text for text in joined if text]


def unpacked(package: str, folder: Path) -> Path:
    """A Debian package's files, downloaded and unpacked, not installed."""
    target = folder / package
    if not target.exists():
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True, stderr=subprocess.DEVNULL)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True)
    return target
