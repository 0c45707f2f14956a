"""hypotheses/<experiment>.yaml: what an experiment tests, committed before its test scores exist.

The file is a list. A report answers its entries in place of the built-in claims. In every entry the statistic is
written so that a value above 0 is as expected. Git shows when each entry was committed, and whether that was before the
scores. Commit times can be forged; this guards against mistakes, not against fraud.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from common.errors import BadInput, suggestion
from common.project import ROOT
from common.settings import Seed, Settings, Tokens
from common.units import format_tokens, parse_tokens
from common.validation import error_line, parse_plain_yaml, read_json, read_plain_yaml
from pipeline.report.frontier import PRICE

FOLDER = "hypotheses"
MOST_PRIMARY = 8  # more claims would leave each too little power after Holm
Refuting = Literal["contradicted", "equivalent", "ruled out", "inconclusive"]
Words = Annotated[str, Field(min_length=1)]
Above0 = Annotated[float, Field(gt=0)]


def _budget(value: object) -> object:
    return 0 if value in (0, "0") else parse_tokens(value)


class Hypothesis(Settings):
    """The keys that all types have.

    expected: the size of the effect that is expected, above 0. margin: a smaller effect would not matter. role: a
    secondary hypothesis is estimated and gets no verdict. seeds: none but these count (null: all that there are).
    regime: the reports of other regimes leave it out (null: none does).
    """

    id: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    statement: Words
    expected: Above0
    margin: Above0
    source: Words = "ours"
    refuted_by: tuple[Refuting, ...] = ("contradicted", "equivalent", "ruled out")
    role: Literal["primary", "secondary"] = "primary"
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    regime: Words | None = None


class GapTerm(Settings):
    """The gap of two methods at a budget: the accuracy of the first minus that of the second at equal bits.

    regime: of both methods, in a hypothesis that compares regimes.
    """

    methods: tuple[Words, Words]
    budget: Tokens
    weight: float = 1.0
    regime: Words | None = None

    @property
    def names(self) -> tuple[str, str]:
        """The methods by the names that a report over regimes has for them."""
        first, second = (in_regime(method, self.regime) for method in self.methods)
        return first, second


class GapHypothesis(Hypothesis):
    """A weighted sum of gaps at equal bits: of one alone, or a difference between budgets or schedules.

    price: accuracy per bit per byte, for what matching missed. family: of one family of tasks (null: the mean of all).
    """

    type: Literal["gap"]
    terms: Annotated[tuple[GapTerm, ...], Field(min_length=1)]
    price: Annotated[float, Field(ge=0)] = PRICE
    family: Words | None = None

    @model_validator(mode="after")
    def regimes_are_of_all_terms(self) -> GapHypothesis:
        _check_regimes(self.regime, [term.regime for term in self.terms])
        return self


class SeparateHypothesis(Hypothesis):
    """Two frontiers that share no bits. The first method is more accurate at no more bits, or needs fewer bits.

    kind: `accuracy` or `bits`, what the first gains.
    """

    type: Literal["separate"]
    methods: tuple[Words, Words]
    budget: Tokens
    kind: Literal["accuracy", "bits"]


class ScoreTerm(Settings):
    """The score of a method at a budget (0: without CT), or of one of its knob values, such as {lambda: 1.5}.

    regime: of the method, in a hypothesis that compares regimes.
    """

    method: Words
    budget: Annotated[int, BeforeValidator(_budget)]
    knob: dict[Words, Any] | None = None
    weight: float = 1.0
    regime: Words | None = None

    @property
    def name(self) -> str:
        """The method by the name that a report over regimes has for it."""
        return in_regime(self.method, self.regime)


class ContrastHypothesis(Hypothesis):
    """A weighted sum of scores (`contrast`), or of counted shares of parameters, where only seeds vary (`count`).

    language: of the tasks and the text, such as `en` (null: the language that the models are adapted to).
    """

    type: Literal["contrast", "count"]
    kind: Literal["accuracy", "answer_bits", "bits", "lost_top_share"]
    terms: Annotated[tuple[ScoreTerm, ...], Field(min_length=1)]
    family: Words | None = None
    language: Words | None = None

    @model_validator(mode="after")
    def kind_has_its_type(self) -> ContrastHypothesis:
        if self.type == "count" and self.kind != "lost_top_share":
            raise ValueError(f"kind={self.kind}: is measured on items. Set type=contrast.")
        if self.kind == "lost_top_share" and (self.family or self.language or any(term.knob for term in self.terms)):
            raise ValueError("kind=lost_top_share: is counted once per merge. Leave out family, language and knob.")
        return self

    @model_validator(mode="after")
    def regimes_are_of_all_terms(self) -> ContrastHypothesis:
        _check_regimes(self.regime, [term.regime for term in self.terms])
        return self


def in_regime(method: str, regime: str | None) -> str:
    """Return `cosine/ties`: the name of a method in a report over several regimes."""
    return f"{regime}/{method}" if regime else method


AnyHypothesis = GapHypothesis | SeparateHypothesis | ContrastHypothesis
TYPES: dict[str, type[AnyHypothesis]] = {
    "gap": GapHypothesis,
    "separate": SeparateHypothesis,
    "contrast": ContrastHypothesis,
    "count": ContrastHypothesis,
}


def _check_regimes(regime: str | None, of_terms: Sequence[str | None]) -> None:
    if any(of_terms) and not all(of_terms):
        raise ValueError("terms: some have a regime and some have none. Give every term a regime, or none.")
    if any(of_terms) and regime:
        raise ValueError(f"regime={regime}: the terms have regimes. Leave out the regime of the hypothesis.")


def regimes_of(one: AnyHypothesis) -> frozenset[str]:
    """Return the regimes that a hypothesis compares; empty if a report of a single regime answers it."""
    if isinstance(one, SeparateHypothesis):
        return frozenset()
    return frozenset(term.regime for term in one.terms if term.regime)


def of_report(
    hypotheses: Sequence[AnyHypothesis], regime: str | None, beside: Collection[str] = ()
) -> list[AnyHypothesis]:
    """Return the hypotheses that a report answers. regime: of the report. beside: the regimes of a report over several.

    A report over several regimes answers the hypotheses that compare them, and no others.
    """
    if beside:
        return [one for one in hypotheses if regimes_of(one) and regimes_of(one) <= set(beside)]
    return [one for one in hypotheses if not regimes_of(one) and one.regime in (None, regime)]


def find(experiment: str) -> Path | None:
    """Return the file of an experiment, in the working folder or in the clone; None if there is none."""
    if not re.fullmatch(r"[\w. -]+", experiment):
        return None
    name = f"{experiment}.yaml"
    return next((path for folder in (Path(), ROOT) if (path := folder / FOLDER / name).is_file()), None)


def read(path: Path) -> list[AnyHypothesis]:
    """Read the hypotheses of a file. Raises BadInput that names the entry and the key."""
    hypotheses = [_parsed(entry, _named(path, place, entry)) for place, entry in enumerate(entries(path), start=1)]
    if twice := [name for name, count in Counter(one.id for one in hypotheses).items() if count > 1]:
        raise BadInput(f"{path}: two hypotheses have the id {twice[0]}. Rename one of them.")
    if (primary := sum(one.role == "primary" for one in hypotheses)) > MOST_PRIMARY:
        raise BadInput(
            f"{path}: at most {MOST_PRIMARY} hypotheses may have role=primary, got {primary}. Set role=secondary for "
            "the others."
        )
    return hypotheses


def entries(path: Path) -> list[Any]:
    """Read the entries of a file as they are written."""
    listed = read_plain_yaml(path, "a list of hypotheses")
    if not isinstance(listed, list) or not listed:
        raise BadInput(f"{path}: expected a list of hypotheses, each with id, statement, type, expected and margin.")
    return listed


def without_data(
    hypotheses: Sequence[AnyHypothesis], methods: Collection[str], budgets: Collection[int]
) -> dict[str, str]:
    """Return, by id, why a hypothesis will have no data: the experiment does not have its method or budget."""
    lacking = {}
    known = ", ".join(format_tokens(tokens) for tokens in sorted(budgets))
    for one in hypotheses:
        for method, budget in reversed(named_in(one)):
            if budget and budget not in budgets:
                lacking[one.id] = f"budget={format_tokens(budget)}: the experiment has {known}"
            if method not in methods:
                lacking[one.id] = f"the method {method} is not in the experiment. {suggestion(method, list(methods))}"
    return lacking


def named_in(one: AnyHypothesis) -> list[tuple[str, int]]:
    """Return the methods and budgets that a hypothesis is about."""
    if isinstance(one, GapHypothesis):
        return [(method, term.budget) for term in one.terms for method in term.names]
    if isinstance(one, SeparateHypothesis):
        return [(method, one.budget) for method in one.methods]
    return [(term.name, term.budget) for term in one.terms]


def _named(path: Path, number: int, entry: Any) -> str:
    name = entry.get("id") if isinstance(entry, dict) else None
    return f"{path}: {name}" if isinstance(name, str) and name else f"{path}: entry {number}"


def _parsed(entry: Any, where: str) -> AnyHypothesis:
    if not isinstance(entry, dict):
        raise BadInput(f"{where}: expected keys such as id and statement, got {entry!r}.")
    given = entry.get("type")
    if given is None:
        raise BadInput(f"{where}: type is missing. Choose {', '.join(TYPES)}.")
    if not isinstance(given, str) or given not in TYPES:
        raise BadInput(f"{where}: type={given}: no such type. {suggestion(str(given), list(TYPES))}")
    try:
        return TYPES[given].model_validate(entry)
    except ValidationError as error:
        raise BadInput(f"{where}: {error_line(error, entry)}") from None


STAGE = "stage.json"


@dataclass(frozen=True)
class Stated:
    """before: committed before the first score that answers it. text: a sentence for readers."""

    when: Literal["before", "after", "unknown"]
    text: str


def stated(committed: datetime | None | Literal["unknown"], scored: datetime | None) -> Stated:
    """Compare a hypothesis with its first score. committed: as in `commit_times`. scored: when, if known."""
    if committed == "unknown":
        return Stated("unknown", "When it was stated is unknown: there is no git history of its file.")
    if committed is None:
        return Stated("after", "Stated after looking: it is not committed as it is now.")
    if scored is None:
        return Stated("unknown", f"Stated {_minute(committed)}; when it was scored is unknown.")
    if committed < scored:
        return Stated("before", f"Stated {_minute(committed)}, before the first score.")
    return Stated("after", f"Stated after looking: {_minute(committed)}, and the first score is of {_minute(scored)}.")


def commit_times(path: Path) -> Mapping[str, datetime | None] | None:
    """Return, by id, since when a hypothesis is committed with its present text; None if it is not.

    None if git cannot know: no repository, or a shallow clone.
    """
    try:
        if _git(path, "rev-parse", "--is-shallow-repository").strip() != "false":
            return None
        begun = _git(path, "rev-list", "--all", "--max-count=1").strip()  # without a commit `git log` fails
        log = _git(path, "log", "--format=%H %ct", "--", path.name).splitlines() if begun else []
    except (OSError, subprocess.CalledProcessError):
        return None
    now = _by_id(entries(path))
    times: dict[str, datetime | None] = dict.fromkeys(now)
    unchanged = set(now)
    for line in log:  # from the newest to the oldest
        commit, seconds = line.split()
        then = _entries_at(path, commit)
        unchanged = {name for name in unchanged if then.get(name) == now[name]}
        times |= dict.fromkeys(unchanged, datetime.fromtimestamp(int(seconds), UTC))
    return times


def first_scored(folders: Iterable[Path]) -> datetime | None:
    """Return when the first of these folders was computed, by its stage.json; None if none has one."""
    times = []
    for folder in folders:
        if (folder / STAGE).is_file():
            times.append(datetime.fromisoformat(str(read_json(folder / STAGE)["finished"])))
    return min((time if time.tzinfo else time.replace(tzinfo=UTC) for time in times), default=None)


def _entries_at(path: Path, commit: str) -> dict[str, Any]:
    """Return the hypotheses of a commit; none if it has no such file, or one that was not whole."""
    try:
        listed = parse_plain_yaml(_git(path, "show", f"{commit}:./{path.name}"))
    except (BadInput, subprocess.CalledProcessError):
        return {}
    return _by_id(listed) if isinstance(listed, list) else {}


def _by_id(listed: list[Any]) -> dict[str, Any]:
    return {str(entry["id"]): entry for entry in listed if isinstance(entry, dict) and "id" in entry}


def _git(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=path.parent, capture_output=True, text=True, encoding="utf-8", check=True
    )
    return done.stdout


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
