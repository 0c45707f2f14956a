"""What a report is made from, and what it is made into: plain values, so that it can be made from any folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import read_jsonl
from merge.methods import METHODS
from pipeline.baselines import BASELINES
from pipeline.old_names import current_method, current_row
from pipeline.report.wording import MERGE_NAMES, NOTES

ENGLISH = "en"
WITHOUT_CT = tuple(name for name, arm in BASELINES.items() if not arm.ct_budgets)  # in results their ct_tokens is 0
ACRONYMS = {"ct": "CT", "sft": "SFT", "ties": "TIES", "dare": "DARE"}  # in names that no table has
Samples = list[dict[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one checkpoint: a folder with scores.jsonl and samples.jsonl."""

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
    budgets of the cells on whose mean it was chosen, in the order of `scores` in tries.jsonl.
    """

    method: str
    ct_tokens: int
    seed: int
    folder: Path
    leads: bool = True
    judged: Sequence[int] = ()


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Subject:
    """What a report is about: the experiment, the target language, every cell's config by its name, the command.

    unfinished: how many stages are done, of how many, while a run is active. given: models that somebody else scored,
    each of them itself what is asked about and not one of several seeds. regimes: those that lie beside each other in
    one report, with which the names of its methods begin.
    """

    title: str
    language: str
    language_name: str
    configs: Mapping[str, Mapping[str, Any]]
    command: str = "make reproduce"
    unfinished: tuple[int, int] | None = None
    given: bool = False
    regimes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One score. The first twelve fields are the columns of results.csv; low and high are a 95% interval.

    predictions: of a fixed set of labels, how often each was the answer.
    """

    language: str
    task: str
    metric: str
    method: str
    ct_tokens: int
    seed: int
    value: float
    low: float
    high: float
    n: int
    chance: float | None
    trivial: float | None
    family: str
    primary: bool
    predictions: Mapping[str, int] | None
    higher_is_better: bool = True  # default for metrics without a record of it; bits have their own names
    chat: bool | None = None  # whether it was asked by a chat template; None: no template was wanted, or no prompt


@dataclass(frozen=True)
class ReportPaths:
    """The published files; `curves` is the PNG, beside which lie its SVG and PDF, `claims` the JSON of claims.

    table: the results in short, for a terminal.
    """

    results_csv: Path
    results_md: Path
    curves: Path
    page: Path
    claims: Path
    table: str


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of scores.jsonl, with the metrics' names of today."""
    return [current_row(row) for row in read_jsonl(folder / "scores.jsonl")]


def read_samples(folder: Path) -> Samples:
    """Return the rows of samples.jsonl, with the fields' names of today."""
    return [current_row(row) for row in read_jsonl(folder / "samples.jsonl")]


def label(method: str) -> str:
    """Return the display name of a method: `ties_sv_1` is `TIES + slack 1`, `linear` is `weighted average`.

    Of several reports: `tiny/ties` is `TIES (tiny)`.
    """
    if "/" in method:
        title, _, method = method.rpartition("/")
        return f"{label(method)} ({title})"
    method = current_method(method)
    if method in BASELINES:
        return BASELINES[method].title
    if method in MERGE_NAMES:
        return MERGE_NAMES[method]
    kept, notes = method, []
    for end, note in NOTES.items():
        if kept.endswith(end):
            kept, notes = kept.removesuffix(end), [note]
    named = [name for name in METHODS if kept == name or kept.startswith(f"{name}_")]
    if not named:
        return _noted(" ".join(ACRONYMS.get(word, word) for word in kept.split("_")), notes)
    recipe = max(named, key=len)
    rest = kept.removeprefix(recipe).strip("_").replace("_", " ")
    title = METHODS[recipe].title
    name = title if title[:2].isupper() or title[1:] != title[1:].lower() else title.lower()
    if rest and not _is_number(rest):
        return _noted(name, [rest, *notes])
    return _noted(f"{name} {rest}".strip(), notes)


def labels(methods: Sequence[str]) -> dict[str, str]:
    """Return the display names of the methods of one report.

    Where a method is beside its own variant with fixed settings (`ties` and `ties_fixed`), it is the tuned one.
    """
    return {
        method: f"{label(method)} (tuned)" if {f"{method}_fixed", f"{method}_stated"} & set(methods) else label(method)
        for method in methods
    }


def _noted(name: str, notes: Sequence[str]) -> str:
    return f"{name} ({', '.join(notes)})" if notes else name


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def mean(values: Sequence[float]) -> float:
    """Return the mean of one value or more."""
    return sum(values) / len(values)
