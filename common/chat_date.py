"""The day that a chat template is given for today. Some write the date into every prompt: Llama 3.2, Mistral, SmolLM3.

Results would change from day to day, so the day is a setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date

TODAY = "strftime_now"  # what a template calls to be given the date
STATED = "2025-01-01"  # the day, as ISO 8601 writes it, where nobody sets another


def clock(day: str) -> Callable[[str], str]:
    """Return what a template calls for the date, on a stated day such as 2025-01-01."""
    return date.fromisoformat(day).strftime


@contextmanager
def stated_day(template: str, day: str) -> Iterator[None]:
    """Give a template this day wherever transformers renders it within the context."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if TODAY not in template:
        yield
        return
    own = _compile_jinja_template(template).globals  # of this text alone, over those of all templates
    own[TODAY] = clock(day)
    try:
        yield
    finally:
        del own[TODAY]
