"""A template -> one self-contained HTML file: style, script, data and Vega are in it, and it asks for nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.units import duration
from pipeline.report import figures
from pipeline.report.wording import percent, signed

FOLDER = Path(__file__).parent


def render(template: str, data: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Return the page. All values are escaped; an unknown name in the template raises jinja2.UndefinedError.

    data: what page.js reads. filters: beside `share`, `duration` and `signed`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update({"share": percent, "duration": duration, "signed": signed, **filters})
    return environment.get_template(template).render(
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        data=Markup(_inline(data)),
        vega=figures.javascript(),
        **values,
    )


def _inline(value: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
