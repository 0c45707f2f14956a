"""The result of a check, and what the checks need to know of a cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import BadInput, user_errors
from pipeline.stages.cell import Cell
from pipeline.store import Store


@dataclass(frozen=True)
class Finding:
    """One line of a check: a failure, which stops the run; a warning; or a fact, which is neither."""

    fails: bool
    text: str
    fact: bool = False

    def __str__(self) -> str:
        return self.text if self.fails or self.fact else f"warning: {self.text}"


def guarded(check: Callable[..., Iterable[Finding] | None], *arguments: Any) -> list[Finding]:
    """Return the findings of a check, including an error that it raises."""
    findings: list[Finding] = []
    try:
        with user_errors():
            findings.extend(check(*arguments) or ())
    except BadInput as error:
        findings.append(Finding(True, str(error)))
    return findings


def first_of_each_language(cells: Sequence[Cell]) -> list[Cell]:
    return list({cell.config.language.code: cell for cell in reversed(cells)}.values())[::-1]


def is_done(cell: Cell, kind: str) -> bool:
    """Return whether the stages of a kind are in the store, so that what they read is not needed again.

    False for a cell without stages: its inputs were rejected.
    """
    store = Store(Path(cell.config.store))
    return bool(cell.stages) and all(store.find(stage) for stage in cell.stages if stage.kind == kind)
