"""A hook of MkDocs (mkdocs.yml): append every file of conf/ to reference/configuration.md on the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONF = Path(__file__).parents[1] / "conf"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page's text, with the configuration files after the configuration page's own text."""
    if page.file.src_uri != "reference/configuration.md":
        return markdown
    files = sorted(CONF.rglob("*.yaml"), key=lambda path: (path.parent.name, path.name))
    shown = (
        f"### {path.relative_to(CONF)}\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```" for path in files
    )
    return "\n\n".join([markdown, *shown])
