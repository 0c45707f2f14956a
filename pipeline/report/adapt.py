"""The data of experiment=adapt: the trials on dev, the selection, answers, and what models scored on test.

Next to the report is the list of its records, adapt_sources.json, from which it can be drawn again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import read_jsonl, write_json
from common.validation import read_json
from eval import prompting
from eval.records import AGGREGATE
from eval.task_checks import LOWER
from eval.task_set import BITS, BY_TEMPLATE
from pipeline.config.adapting import BEST, TASKS
from pipeline.report.inference import Estimate
from pipeline.report.paired import LOWER_IS_BETTER, Evidence, Kind, Term
from pipeline.report.records import ENGLISH, Evaluation, ReportInfo, absolute, read_scores, relative
from pipeline.stages.adapting import is_of_lm_eval

FILE = "adapt_sources.json"
BASE, CHAT, CT, CT_ON_CHAT, ADAPTED = "base", "sft", "ct", "sft_then_ct", "adapted"
TITLES = {
    BASE: "base",
    CHAT: "chat model",
    CT: "CT",
    CT_ON_CHAT: "CT on the chat model",
    ADAPTED: "adapted model",
}


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class AdaptChoice:
    """The candidate that was selected, by which measures.

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


@dataclass(frozen=True, kw_only=True)
class AdaptSources:
    """Folders of a run.

    choice: with candidates.jsonl and choice.yml. tests: by model, with scores.jsonl and samples.jsonl on test. answers:
    by model, with answers.jsonl. corpus: whose text languages are identified by; None: that of nothing. stages: a
    stage.json and how many cells needed the stage. ct_tokens: of CT, for results.csv.
    """

    info: ReportInfo
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
        """Write adapt_sources.json, with paths relative to the folder."""
        write_json(
            folder / FILE,
            {
                "subject": vars(self.info),
                "choice": relative(self.choice, folder),
                "tests": {name: relative(path, folder) for name, path in self.tests.items()},
                "answers": {name: relative(path, folder) for name, path in self.answers.items()},
                "corpus": relative(self.corpus, folder) if self.corpus else None,
                "stages": [[relative(path, folder), cells] for path, cells in self.stages],
                "ct_tokens": self.ct_tokens,
            },
        )


def read_sources(folder: Path) -> AdaptSources:
    """Read what `save` wrote. Raises BadInput if it cannot be read, or if results are no longer in their place."""
    try:
        kept = read_json(folder / FILE)
        sources = AdaptSources(
            info=ReportInfo.of_json(kept["subject"]),
            choice=absolute(kept["choice"], folder),
            tests={name: absolute(path, folder) for name, path in kept["tests"].items()},
            answers={name: absolute(path, folder) for name, path in kept["answers"].items()},
            corpus=absolute(kept["corpus"], folder) if kept["corpus"] else None,
            stages=[(absolute(path, folder), cells) for path, cells in kept["stages"]],
            ct_tokens=kept["ct_tokens"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / FILE}: cannot be read ({error}). Run experiment=adapt again.") from None
    needed = [sources.choice, *sources.tests.values(), *sources.answers.values(), *(path for path, _ in sources.stages)]
    if lost := [path for path in needed if not path.exists()]:
        raise BadInput(f"{folder / FILE}: {lost[0]} is missing. Restore the store, or run experiment=adapt again.")
    return sources


def read_candidates(folder: Path) -> list[Candidate]:
    """Read candidates.jsonl: the chat model, then the tries in their order."""
    return [Candidate(**row) for row in read_jsonl(folder / "candidates.jsonl")]


def read_choice(folder: Path) -> AdaptChoice:
    """Read choice.yml."""
    import yaml

    return AdaptChoice(**yaml.safe_load((folder / "choice.yml").read_text(encoding="utf-8")))


def read_answers(folder: Path) -> list[Answered]:
    """Read answers.jsonl: the questions in their order."""
    return [Answered(**row) for row in read_jsonl(folder / "answers.jsonl")]


ACCURACY, OF_ENGLISH = "acc", f"_{ENGLISH}"
UNITS: dict[Kind, str] = {
    "accuracy": "in accuracy",
    "chat": "in accuracy by chat template",
    "bits": "bits per byte saved",
    "error": "of errors saved",
    "corpus": "in BLEU or chrF",
}


@dataclass(frozen=True, kw_only=True)
class AdaptMeasure:
    """A measure by what it is the mean of.

    parts: families of tasks (None: all) with kind and weight; empty: all tasks of the kind. title: as on the page, such
    as `Chichewa accuracy`.
    """

    name: str
    title: str
    language: str
    kind: Kind
    parts: tuple[tuple[Kind, str | None, float], ...] = ()

    @property
    def unit(self) -> str:
        """The unit of a gain."""
        return UNITS[self.kind]

    @property
    def lower_is_better(self) -> bool:
        return self.kind in LOWER_IS_BETTER

    @property
    def terms(self) -> tuple[tuple[Kind, str | None, float], ...]:
        """Kind, family and weight of each part."""
        return self.parts or ((self.kind, None, 1.0),)


@dataclass(frozen=True)
class Score:
    """A score with its 95% interval, of n items or documents."""

    value: float
    low: float
    high: float
    n: int


def kind_of(row: Mapping[str, Any]) -> Kind:
    """Return the kind of a task by its score record."""
    if row["metric"] == BITS:
        return "bits"
    if row.get(AGGREGATE):
        return "corpus"
    if row["task"].endswith(BY_TEMPLATE):
        return "chat"
    return "accuracy" if row.get(LOWER, True) else "error"


def _is_of(row: dict[str, Any], measure: AdaptMeasure) -> bool:
    """Return whether a score record is part of a measure."""
    if row["language"] != measure.language:
        return False
    if measure.name in (ACCURACY, f"{ACCURACY}{OF_ENGLISH}"):
        return bool(row["family"] == "mean")
    if measure.name in (BITS, f"{BITS}{OF_ENGLISH}"):
        return bool(row["metric"] == BITS)
    return row["task"] == measure.name or (measure.name == TASKS and is_of_lm_eval(row))


@dataclass
class TestScores:
    """What models scored on test, each read once.

    language, title: the target's code and name.
    """

    __test__ = False  # its name is no test's

    evaluations: Sequence[Evaluation]
    language: str
    title: str
    _evidence: dict[str, Evidence] = field(default_factory=dict)

    def gain(self, measure: AdaptMeasure, first: str, second: str) -> Estimate | None:
        """Return how much better `first` is than `second`, with the interval for other documents of the same kind.

        Positive is better, whatever the measure. None if one of them was not scored in it. Raises ValueError for models
        that answered different items.
        """
        sign = -1.0 if measure.lower_is_better else 1.0
        return self._estimate(measure, {first: sign, second: -sign})

    def score(self, measure: AdaptMeasure, model: str) -> Score | None:
        """Return a model's own score, or None if it was not scored in the measure.

        It is the one of scores.jsonl, with its interval, if the measure is one score.
        """
        records = [row for row in self._records.get(model, ()) if row["primary"] and _is_of(row, measure)]
        if len(records) == 1:
            return Score(*(records[0][name] for name in ("value", "low", "high", "n")))
        estimate = self._estimate(measure, {model: 1.0})
        return None if estimate is None else Score(estimate.value, estimate.low, estimate.high, estimate.n)

    def _estimate(self, measure: AdaptMeasure, models: Mapping[str, float]) -> Estimate | None:
        evidence = self._evidence.setdefault(measure.language, Evidence(self.evaluations, measure.language))
        if not all(evidence.has(model, 0) for model in models):
            return None
        terms: list[Term] = [
            (kind, family, (model, 0), side * weight)
            for model, side in models.items()
            for kind, family, weight in measure.terms
        ]
        estimate = evidence.combination(terms)
        if estimate is None:
            return None
        each = [evidence.combination([(kind, family, model, 1.0)]) for kind, family, model, _ in terms]
        items = sum(one.n for one in each[: len(measure.terms)] if one)  # those of the first model: all have the same
        return replace(estimate, n=items)

    @cached_property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """A score record under its primary metric for each task."""
        records = [row for rows in self._records.values() for row in rows]
        return {row["task"]: row for row in records if row["primary"] and row["family"] != "mean"}

    @cached_property
    def _records(self) -> dict[str, list[dict[str, Any]]]:
        return {one.method: read_scores(one.folder) for one in self.evaluations}

    @property
    def by_template(self) -> dict[str, bool]:
        """Whether each model was asked by its chat template; empty where no model was meant to be."""
        stated = {
            model: [row[prompting.CHAT] for row in rows if prompting.CHAT in row]
            for model, rows in self._records.items()
        }
        return {model: any(chats) for model, chats in stated.items() if chats}

    @property
    def own_tasks(self) -> list[str]:
        """The lm-eval tasks in the target language."""
        return [name for name, row in self.tasks.items() if row["language"] == self.language and is_of_lm_eval(row)]

    def measure(self, name: str) -> AdaptMeasure:
        """Return the measure of a name: acc, bits_per_byte, both with _en for English, tasks, or a task.

        Raises ValueError for a task that no model was scored on.
        """
        simple: Mapping[str, tuple[str, str, Kind]] = {
            ACCURACY: (f"{self.title} accuracy", self.language, "accuracy"),
            BITS: (f"{self.title} bits per byte", self.language, "bits"),
            f"{ACCURACY}{OF_ENGLISH}": ("English accuracy", ENGLISH, "accuracy"),
            f"{BITS}{OF_ENGLISH}": ("English bits per byte", ENGLISH, "bits"),
        }
        if name in simple:
            words, of, kind = simple[name]
            return AdaptMeasure(name=name, title=words, language=of, kind=kind)
        wanted = self.own_tasks if name == TASKS else [name]
        chosen = [self.tasks[task] for task in wanted if task in self.tasks]
        if not chosen:
            raise ValueError(f"no model was scored on the measure {name}")
        counts = Counter((kind_of(row), str(row["family"])) for row in chosen)
        parts = tuple((kind, family, count / len(chosen)) for (kind, family), count in counts.items())
        words = f"{self.title} tasks" if name == TASKS else name
        language, kind = chosen[0]["language"], kind_of(chosen[0])
        return AdaptMeasure(name=name, title=words, language=language, kind=kind, parts=parts)

    def shown(self, *more: AdaptMeasure) -> list[AdaptMeasure]:
        """Return the measures of the table: the language's, its tasks, English; those of the choice are among them."""
        names = [ACCURACY, BITS, *self.own_tasks, f"{ACCURACY}{OF_ENGLISH}", f"{BITS}{OF_ENGLISH}"]
        measures = {measure.name: measure for measure in (*more, *map(self.measure, names))}
        order = [*(name for name in measures if name not in names), *names]
        return [measures[name] for name in order]
