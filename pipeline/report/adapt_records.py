"""What the report of experiment=adapt is made from: the tries on dev, the choice, scores on test, and answers.

It is left beside the report, in adapt_sources.json: the report can be drawn again from that and the store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import read_jsonl, write_json
from common.validation import read_json
from pipeline.config.adapting import BEST
from pipeline.report.records import Evaluation, Subject

FILE = "adapt_sources.json"
BASE, CHAT, CT, CT_ON_CHAT, ADAPTED = "base", "sft", "ct", "sft_then_ct", "adapted"
TITLES = {
    BASE: "base",
    CHAT: "chat model",
    CT: "CT",
    CT_ON_CHAT: "CT on the chat model",
    ADAPTED: "adapted model",
}


@dataclass(frozen=True)
class Candidate:
    """A try of a merge, or the chat model itself, on dev.

    settings: what its method's grid sets. gain, keep: its values of the two measures. kept: whether `keep` is within
    the tolerance.
    """

    candidate: str
    method: str
    settings: Mapping[str, Any]
    gain: float
    keep: float
    kept: bool


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen, by which measures.

    tolerance: what `keep` may lose, in its unit. write: best, or the method that `adapt.write` asked for.
    """

    candidate: str
    method: str
    settings: Mapping[str, Any]
    gain: str
    keep: str
    tolerance: float
    write: str = BEST

    @property
    def is_chat_model(self) -> bool:
        """Whether no candidate was better than the chat model."""
        return self.candidate == CHAT


@dataclass(frozen=True)
class Answered:
    """One answer. ended: whether the model stopped by itself; else it was cut after so many tokens."""

    question: str
    answer: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class AdaptSources:
    """Folders of a run.

    choice: with candidates.jsonl and choice.yml. tests: by model, with scores.jsonl and samples.jsonl on test. answers:
    by model, with answers.jsonl. corpus: whose text languages are identified by; None: that of nothing. stages: a
    stage.json and how many cells needed the stage. ct_tokens: of CT, for results.csv.
    """

    subject: Subject
    choice: Path
    tests: Mapping[str, Path]
    answers: Mapping[str, Path] = field(default_factory=dict)
    corpus: Path | None = None
    stages: Sequence[tuple[Path, int]] = ()
    ct_tokens: int = 0

    @property
    def shown(self) -> dict[str, str]:
        """The titles of the models that were scored, without those that are another one of them.

        With one model as base and chat model, their stages are the same. So are those of CT and CT on the chat model.
        """
        same = ((BASE, CHAT), (CT, CT_ON_CHAT), (ADAPTED, CHAT))
        again = {one for one, other in same if one in self.tests and self.tests[one] == self.tests.get(other)}
        return {name: title for name, title in TITLES.items() if name in self.tests and name not in again}

    @property
    def answered(self) -> dict[str, Path]:
        """The answers of the models that are shown, in the order of TITLES.

        CT on the chat model has none of its own: with one model as base and chat model, those of CT are its.
        """
        given = dict(self.answers)
        if CT in given and CT not in self.shown:
            given[CT_ON_CHAT] = given[CT]
        return {name: given[name] for name in self.shown if name in given}

    @property
    def evaluations(self) -> list[Evaluation]:
        """The scores on test as the paired comparisons take them, in the order of TITLES."""
        return [Evaluation(name, 0, 0, self.tests[name]) for name in TITLES if name in self.tests]

    def save(self, folder: Path) -> None:
        """Write adapt_sources.json, with places relative to the folder."""

        def place(path: Path) -> str:
            return os.path.relpath(path.absolute(), folder.absolute())

        write_json(
            folder / FILE,
            {
                "subject": vars(self.subject),
                "choice": place(self.choice),
                "tests": {name: place(path) for name, path in self.tests.items()},
                "answers": {name: place(path) for name, path in self.answers.items()},
                "corpus": place(self.corpus) if self.corpus else None,
                "stages": [[place(path), cells] for path, cells in self.stages],
                "ct_tokens": self.ct_tokens,
            },
        )


def read_sources(folder: Path) -> AdaptSources:
    """Read what `save` wrote. Raises BadInput if it cannot be read, or if results are no longer in their place."""
    try:
        kept = read_json(folder / FILE)

        def place(path: str) -> Path:
            return Path(os.path.normpath(folder / path))

        unfinished = kept["subject"]["unfinished"]
        found = AdaptSources(
            Subject(**{**kept["subject"], "unfinished": tuple(unfinished) if unfinished else None}),
            place(kept["choice"]),
            {name: place(path) for name, path in kept["tests"].items()},
            {name: place(path) for name, path in kept["answers"].items()},
            place(kept["corpus"]) if kept["corpus"] else None,
            [(place(path), cells) for path, cells in kept["stages"]],
            kept["ct_tokens"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / FILE}: cannot be read ({error}). Run experiment=adapt again.") from None
    needed = [found.choice, *found.tests.values(), *found.answers.values(), *(path for path, _ in found.stages)]
    if lost := [path for path in needed if not path.exists()]:
        raise BadInput(f"{folder / FILE}: {lost[0]} is missing. Restore the store, or run experiment=adapt again.")
    return found


def read_candidates(folder: Path) -> list[Candidate]:
    """Read candidates.jsonl: the chat model, then the tries in their order."""
    return [Candidate(**row) for row in read_jsonl(folder / "candidates.jsonl")]


def read_choice(folder: Path) -> Choice:
    """Read choice.yml."""
    import yaml

    return Choice(**yaml.safe_load((folder / "choice.yml").read_text(encoding="utf-8")))


def read_answers(folder: Path) -> list[Answered]:
    """Read answers.jsonl: the questions in their order."""
    return [Answered(**row) for row in read_jsonl(folder / "answers.jsonl")]
