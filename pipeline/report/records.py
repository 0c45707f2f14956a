"""What a report is made from: plain values that name checkpoints and the folders of their results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.files import read_jsonl
from pipeline.baselines import BASELINES
from pipeline.old_names import current_row

ENGLISH = "en"
WITHOUT_CT = tuple(name for name, arm in BASELINES.items() if not arm.ct_budgets)  # in results their ct_tokens is 0
Samples = list[dict[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """The scores of one checkpoint: a folder with scores.jsonl and samples.jsonl."""

    method: str
    ct_tokens: int
    seed: int
    folder: Path


@dataclass(frozen=True)
class Audit:
    """The audit of one merge: a folder with audit.json and the recipe, merge.yml."""

    method: str
    ct_tokens: int
    seed: int
    folder: Path


@dataclass(frozen=True)
class Choice:
    """The selection of one merge's settings on dev: a folder with choice.yml and tries.jsonl.

    leads: whether the merge may be named the best on dev, being one of CT and SFT and no control. judged: the CT
    budgets of the cells on whose mean it was selected, in the order of `scores` in tries.jsonl. sampler: of the search
    that proposed its trials; None: a grid states them.
    """

    method: str
    ct_tokens: int
    seed: int
    folder: Path
    leads: bool = True
    judged: Sequence[int] = ()
    sampler: str | None = None


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One setting of a method's knob at one budget and seed, scored on both splits.

    settings: the knob alone, such as {"lambda": 1.5}. dev, folder: scores.jsonl and samples.jsonl on dev and on test.
    """

    method: str
    ct_tokens: int
    seed: int
    settings: Mapping[str, Any]
    dev: Path
    folder: Path


@dataclass(frozen=True, kw_only=True)
class ReportInfo:
    """What a report is about: the experiment, the target language, every cell's config by its name, the command.

    unfinished: the number of stages that are done, and of all, while some are not. given: checkpoints that somebody
    else scored. regimes: the titles of the reports that a report over several regimes is made from.
    """

    title: str
    language: str
    language_name: str
    configs: Mapping[str, Mapping[str, Any]]
    command: str = "make reproduce"
    unfinished: tuple[int, int] | None = None
    given: bool = False
    regimes: tuple[str, ...] = ()

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> ReportInfo:
        """Return the value whose fields were written as JSON."""
        unfinished = tuple(kept["unfinished"]) if kept.get("unfinished") else None
        return cls(**{**kept, "unfinished": unfinished, "regimes": tuple(kept.get("regimes", ()))})

    @property
    def regime(self) -> str | None:
        """The regime of its cells, if the sweep had several."""
        return next((config.get("regime") for config in self.configs.values()), None)

    @property
    def languages(self) -> dict[str, str]:
        """The names of the target language and English, by code."""
        return {self.language: self.language_name, ENGLISH: "English"}


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """The published files; `curves` is the PNG, with its SVG and PDF next to it, `claims` the JSON of claims.

    table: the results in short, for a terminal.
    """

    results_csv: Path
    results_md: Path
    curves: Path
    page: Path
    claims: Path
    table: str


def relative(path: Path, folder: Path) -> str:
    """Return a path as sources.json has it; `absolute` is the way back."""
    return os.path.relpath(path.absolute(), folder.absolute())


def absolute(path: str, folder: Path) -> Path:
    """Return the path that `relative` was given."""
    return Path(os.path.normpath(folder / path))


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of scores.jsonl, with the metrics' names of today."""
    return [current_row(row) for row in read_jsonl(folder / "scores.jsonl")]


def read_samples(folder: Path) -> Samples:
    """Return the rows of samples.jsonl, with the fields' names of today."""
    return [current_row(row) for row in read_jsonl(folder / "samples.jsonl")]


def unique(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Return each checkpoint once, unmerged methods first.

    Base and SFT belong to every cell of a sweep, but no budget changes them: their ct_tokens are 0.
    """
    checkpoints: dict[tuple[str, int, int], Evaluation] = {}
    for one in evaluations:
        budget = 0 if one.method in WITHOUT_CT else one.ct_tokens
        checkpoints.setdefault((one.method, budget, one.seed), replace(one, ct_tokens=budget))
    order = methods_in_order(one.method for one in checkpoints.values())
    return sorted(checkpoints.values(), key=lambda one: (order.index(one.method), one.ct_tokens, one.seed))


def methods_in_order(methods: Iterable[str]) -> list[str]:
    """Return each method once: base, SFT, CT, CT-then-SFT, the other baselines that train, then merges as they come."""
    seen = dict.fromkeys(methods)
    return [method for method in BASELINES if method in seen] + [method for method in seen if method not in BASELINES]


def mean(values: Sequence[float]) -> float:
    """Return the mean of one value or more."""
    return sum(values) / len(values)
