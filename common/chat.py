"""Chat templates: that of a checkpoint, the tokens that end its answers, and the date that it writes into prompts.

Llama 3.2, Mistral and SmolLM3 write the date into every prompt. Results would change from day to day, so the date is a
setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from common.validation import read_json

DATE_FUNCTION = "strftime_now"  # that a template calls for the date
DEFAULT_DAY = "2025-01-01"


def read_chat_template(folder: Path) -> str | None:
    """Return the chat template in a checkpoint's folder as transformers finds it; None if there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several, each with a name
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def read_stop_ids(folder: Path) -> list[int]:
    """Return the ids of the tokens that end a generation, from the generation config or else the config."""
    for name in ("generation_config.json", "config.json"):
        config = read_json(folder / name) if (folder / name).is_file() else {}
        if "eos_token_id" in config:
            ids = config["eos_token_id"]
            return [] if ids is None else ids if isinstance(ids, list) else [ids]
    return []


def date_function(day: str) -> Callable[[str], str]:
    """Return the function that a template calls for the date, as on a day such as 2025-01-01."""
    return date.fromisoformat(day).strftime


@contextmanager
def fixed_day(template: str, day: str) -> Iterator[None]:
    """Give a template this day for today wherever transformers renders it within the context."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if DATE_FUNCTION not in template:
        yield
        return
    template_globals = _compile_jinja_template(template).globals  # of this template alone
    template_globals[DATE_FUNCTION] = date_function(day)
    try:
        yield
    finally:
        del template_globals[DATE_FUNCTION]
