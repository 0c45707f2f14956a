"""A view and its template -> one self-contained HTML file: no script, font or picture comes from elsewhere."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any, Protocol

from common.units import duration
from pipeline.report import figures
from pipeline.report.formatting import budget_name, by_part, label, number, percent, signed

KEPT_CONTROLS = "\n\t"
WEB = Path(__file__).parent / "web"


def plain(text: str) -> str:
    """Return a text that a page can show: controls and lone surrogates become U+FFFD."""
    return "".join(
        "\ufffd" if unicodedata.category(letter) in ("Cc", "Cs") and letter not in KEPT_CONTROLS else letter
        for letter in text
    )


FILTERS = {
    "share": percent,
    "duration": duration,
    "signed": signed,
    "number": number,
    "label": label,
    "budget": budget_name,
    "by_part": by_part,
    "plain": plain,
}


class View(Protocol):
    """What a template shows; `script_data` is what page.js reads."""

    @property
    def script_data(self) -> dict[str, Any]: ...


def render(template: str, view: View) -> str:
    """Return the page. All values are escaped; an unknown name in the template raises jinja2.UndefinedError."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(WEB),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(FILTERS)
    return environment.get_template(template).render(
        css=Markup((WEB / "page.css").read_text(encoding="utf-8")),
        script=Markup((WEB / "page.js").read_text(encoding="utf-8")),
        data=Markup(_inline(view.script_data)),
        vega=figures.javascript(),
        view=view,
    )


def _inline(value: Any) -> str:
    """Return JSON that a script element may contain."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
