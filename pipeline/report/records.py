"""What a report is made from, and what it is made into: plain values, so that it can be made from any folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.arms import ARMS

ENGLISH = "en"
WITHOUT_CT = tuple(name for name, arm in ARMS.items() if not arm.ct_budgets)  # in results their ct_tokens is 0
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
    """What one merge discarded: a folder with audit.json and the recipe, merge.yml."""

    method: str
    ct_tokens: int
    seed: int
    folder: Path


@dataclass(frozen=True)
class Choice:
    """How the settings of one merge were chosen on dev: a folder with choice.yml and tries.jsonl.

    leads: whether the merge may be named the best on dev, being one of CT and SFT and no control.
    judged: the CT budgets of the cells on whose mean it was chosen, in the order of `scores` in tries.jsonl.
    """

    method: str
    ct_tokens: int
    seed: int
    folder: Path
    leads: bool = True
    judged: Sequence[int] = ()


@dataclass(frozen=True)
class Subject:
    """What a report is about: the experiment, the target language, every cell's config by its name, the command.

    unfinished: how many stages are done, of how many, while a run goes on. given: models that somebody else scored,
    each of them itself what is asked about and not one of several seeds.
    """

    title: str
    language: str
    language_name: str
    configs: Mapping[str, Mapping[str, Any]]
    command: str = "make reproduce"
    unfinished: tuple[int, int] | None = None
    given: bool = False


@dataclass(frozen=True)
class Row:
    """One score. The first twelve fields are the columns of results.csv; low and high are a 95 % interval.

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


def label(method: str) -> str:
    """A method's name as people write it: `ties_sv_1` is `TIES SV 1`, `ct_then_sft_with_ct` `CT-then-SFT with CT`.

    Of several reports: `tiny/ties` is `TIES (tiny)`.
    """
    if "/" in method:
        title, _, method = method.rpartition("/")
        return f"{label(method)} ({title})"
    if method in ARMS:
        return ARMS[method].title
    acronyms = {
        "ct": "CT",
        "sft": "SFT",
        "ties": "TIES",
        "dare": "DARE",
        "sv": "SV",
        "slerp": "SLERP",
        "della": "DELLA",
    }
    return " ".join(acronyms.get(word, word) for word in method.split("_")).replace(" then ", "-then-")


def mean(values: Sequence[float]) -> float:
    """The mean of one value or more."""
    return sum(values) / len(values)
