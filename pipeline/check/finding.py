"""The result of a check, and what all checks need of a cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import BadInput, user_errors
from pipeline import inputs
from pipeline.config import Config
from pipeline.stages.cell import Cell, plan_cell
from pipeline.store import Store


@dataclass(frozen=True)
class Finding:
    """One line of a check. A warning stops nothing. `told`: neither a failure nor a warning."""

    fails: bool
    text: str
    told: bool = False

    def __str__(self) -> str:
        return self.text if self.fails or self.told else f"warning: {self.text}"


def guarded(check: Callable[..., Iterable[Finding] | None], *arguments: Any) -> list[Finding]:
    """Return the findings of a check, including an error that it raises."""
    findings: list[Finding] = []
    try:
        with user_errors():
            findings.extend(check(*arguments) or ())
    except BadInput as error:
        findings.append(Finding(True, str(error)))
    return findings


def first_of_each_language(configs: Sequence[Config]) -> list[Config]:
    return list({config.language.code: config for config in reversed(configs)}.values())[::-1]


def given(config: Config) -> dict[str, str]:
    """Return the checkpoints that a cell takes from outside, by key."""
    paths = {"model.path": config.model.path, "ct.source": config.ct_source, "sft.source": config.sft.source}
    return {key: path for key, path in paths.items() if path is not None}


def planned(config: Config) -> Cell | None:
    """Return the plan of a cell; None if its inputs are rejected, which another check says."""
    try:
        return plan_cell(config, inputs.inputs(config, network=False))
    except BadInput:
        return None


def is_done(config: Config, kind: str) -> bool:
    """Return whether the stages of a kind are in the store: what they read is not needed again."""
    store, cell = Store(Path(config.store)), planned(config)
    return cell is not None and all(store.find(stage) for stage in cell.stages if stage.kind == kind)
