"""The report of experiment=adapt: one page, and the same numbers as CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pandas import DataFrame

from common.files import write_atomic, write_json, write_jsonl
from eval.metrics import wilson
from pipeline.report import adapt_claims, claims, data, page, trigrams
from pipeline.report.adapt import (
    CHAT,
    TITLES,
    AdaptChoice,
    AdaptMeasure,
    AdaptSources,
    Answered,
    Candidate,
    TestScores,
    read_answers,
    read_candidates,
    read_choice,
)
from pipeline.report.charts.style import INK, PALETTE, SHAPES, SOFT, Chart, Spec, number, sized, tooltip
from pipeline.report.claims import Answer
from pipeline.report.data import DIGITS, DataExposure, frame
from pipeline.report.formatting import label
from pipeline.report.records import WITHOUT_CT, ReportInfo
from pipeline.report.stages import StageRecords, new_tokens, read_counts, read_stages
from pipeline.report.trigrams import Identifier
from pipeline.report.view import configs_text, script_data

TEMPLATE = "adapt_page.html.jinja"
CHAT_TITLE = "chat model"
STEPS = {  # of a run, by kind of stage; evaluations are split by what they score
    "corpus": "reading the text",
    "items": "making test items",
    "instructions": "making instructions",
    "leaks": "looking for contamination",
    "ct_blocks": "packing the text",
    "ct": "continual pre-training",
    "merge": "merging",
    "eval dev": "scoring the tries on dev",
    "choose": "choosing",
    "adapted": "writing the model",
    "eval test": "scoring the models on test",
    "answers": "answering the questions",
}


@dataclass(frozen=True, kw_only=True)
class AdaptPaths:
    """The files that were written, and what they show.

    line: the selection and its test scores, for a terminal. sentence: the first ones of the page. scores: the table of
    all models as Markdown, for the model's card.
    """

    page: Path
    results_csv: Path
    tries_csv: Path
    answers: Path
    claims: Path
    choice: AdaptChoice
    line: str
    sentence: str
    scores: str

    @property
    def curves(self) -> None:
        """The figure of curves that other reports have; an adaptation has one budget."""

    @property
    def table(self) -> str:
        """What a terminal shows: the selection with its test scores, or why there is none."""
        return self.sentence if self.choice.is_chat_model else self.line

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that were written."""
        return (self.results_csv, self.tries_csv, self.answers, self.claims, self.page)


@dataclass(frozen=True)
class ScoreCell:
    """A value with its 95% interval, as text; `best` if no other model's is better."""

    value: str
    interval: str
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A measure: its title, a remark such as `lower is better`, and a cell by model."""

    title: str
    remark: str
    cells: Mapping[str, ScoreCell]


@dataclass(frozen=True, kw_only=True)
class AdaptView:
    """What adapt_page.html.jinja shows.

    models: titles by name. columns: of the table of scores. answers: by model, in their order. identifier: of the
    language; None without a corpus. asked: how models were prompted. own_tasks: tasks of lm-eval whose first items took
    part in the selection. rows: the candidates on dev. text: what CT read; None if no blocks have so many tokens.
    """

    info: ReportInfo
    choice: AdaptChoice
    sentence: str
    gain: AdaptMeasure
    keep: AdaptMeasure
    claims: Sequence[Answer]
    models: Mapping[str, str]
    one_model: bool
    columns: Sequence[Column]
    answers: Mapping[str, Sequence[Answered]]
    identifier: Identifier | None
    asked: str
    own_tasks: Sequence[str]
    rows: DataFrame
    text: DataExposure | None
    stages: StageRecords

    @property
    def chosen(self) -> str:
        """The name of the adapted model."""
        return adapt_claims.name_of(self.choice)

    @property
    def answering(self) -> list[tuple[str, str]]:
        """The models whose answers are shown, with their titles."""
        return [(name, self.models.get(name, TITLES[name])) for name in self.answers]

    @property
    def questions(self) -> list[tuple[str, list[tuple[Answered, bool | None]]]]:
        """Each question with the answers of the models, and whether each is in the language."""
        return [
            (together[0].question, [(one, self.is_in_language(one)) for one in together])
            for together in zip(*self.answers.values(), strict=True)
        ]

    def is_in_language(self, answer: Answered) -> bool | None:
        """Return whether an answer is in the language; None without a corpus."""
        return self.identifier.is_in_language(answer.answer) if self.identifier else None

    @property
    def steps(self) -> list[tuple[str, int, float]]:
        """The steps of the run in their order: name, stages, seconds."""
        by_step: dict[str, list[float]] = {}
        for record in self.stages:
            split = f" {record['settings']['split']}" if record["kind"] == "eval" else ""
            name = STEPS.get(f"{record['kind']}{split}", str(record["kind"]))
            by_step.setdefault(name, []).append(float(record["seconds"]))
        order = dict.fromkeys([*(name for name in STEPS.values() if name in by_step), *by_step])
        return [(name, len(by_step[name]), sum(by_step[name])) for name in order]

    @property
    def configs(self) -> list[tuple[str, str]]:
        return configs_text(self.info.configs)

    @property
    def script_data(self) -> dict[str, Any]:
        """What page.js reads: one chart, and nothing to choose."""
        chart = trials_map(self.rows, self.choice, self.gain, self.keep)
        data = script_data([chart], chart.tables)
        data["charts"][0]["label"] = described(self.rows, self.gain, self.keep)
        return data


def adapt_view(given: AdaptSources) -> AdaptView:
    """Read and compare all that a run left.

    Raises ValueError for models that answered different items, or for a measure that none was scored in.
    """
    candidates, choice, info = read_candidates(given.choice), read_choice(given.choice), given.info
    scores = TestScores(given.evaluations, info.language, info.language_name)
    gain, keep = scores.measure(choice.gain), scores.measure(choice.keep)
    answers = {name: read_answers(path) for name, path in given.answered.items()}
    identifier = trigrams.learn(given.corpus, info.language) if given.corpus else None
    judge = identifier.is_in_language if identifier else None
    claims = adapt_claims.answers(scores, gain, keep, choice.tolerance, adapted=not choice.is_chat_model)
    stages = read_stages(given.stages)
    exposure = data.data_exposure(read_counts(stages), [given.ct_tokens])
    return AdaptView(
        info=info,
        choice=choice,
        sentence=adapt_claims.sentences(claims, choice, candidates, gain, keep),
        gain=gain,
        keep=keep,
        claims=claims,
        models=given.shown,
        one_model=len(given.shown) < len([name for name in TITLES if name in given.tests]),
        columns=[
            *columns(scores, scores.shown(gain, keep), list(given.shown)),
            *answer_columns(answers, info.language_name, judge),
        ],
        answers=answers,
        identifier=identifier,
        asked=asked(scores.by_template, given.shown),
        own_tasks=scores.own_tasks,
        rows=dev_rows(candidates, choice),
        text=next((one for one in exposure if one.language == info.language), None),
        stages=StageRecords([{**record, "vocabulary": new_tokens(path.parent)} for path, record in stages]),
    )


def render(given: AdaptSources, out: Path) -> AdaptPaths:
    """Write report.html, results.csv, tries.csv, answers.jsonl and claims.json to `out`, each complete or not at all.

    Raises ValueError as `adapt_view` does.
    """
    out.mkdir(parents=True, exist_ok=True)
    view = adapt_view(given)
    paths = AdaptPaths(
        page=out / "report.html",
        results_csv=out / "results.csv",
        tries_csv=out / "tries.csv",
        answers=out / "answers.jsonl",
        claims=out / "claims.json",
        choice=view.choice,
        line=adapt_claims.terminal_line(view.claims, view.choice, view.gain, view.keep),
        sentence=view.sentence,
        scores=markdown(view.columns, view.models),
    )
    evaluations = [
        one if one.method in WITHOUT_CT else replace(one, ct_tokens=given.ct_tokens) for one in given.evaluations
    ]
    answers = [
        {"model": model, **vars(one), "in_language": view.is_in_language(one)}
        for model, every in view.answers.items()
        for one in every
    ]
    write_atomic(paths.results_csv, data.to_csv(data.gather(evaluations)))
    write_atomic(paths.tries_csv, trials_csv(view.rows, view.choice))
    write_atomic(paths.answers, lambda staging: write_jsonl(staging, answers))
    write_json(paths.claims, claims.as_json(view.claims))
    write_atomic(paths.page, page.render(TEMPLATE, view))
    given.save(out)
    return paths


def columns(scores: TestScores, measures: Sequence[AdaptMeasure], models: Sequence[str]) -> list[Column]:
    """Return a column for each measure that some model was scored in."""
    shown = []
    for measure in measures:
        values = {model: value for model in models if (value := scores.score(measure, model)) is not None}
        if not values:
            continue
        top = (min if measure.lower_is_better else max)(round(value.value, 3) for value in values.values())
        cells = {
            model: ScoreCell(
                f"{value.value:.3f}",
                f"{value.low:.3f} to {value.high:.3f}",
                round(value.value, 3) == top and len(values) > 1,
            )
            for model, value in values.items()
        }
        items = next(iter(values.values())).n
        unit = "documents" if measure.kind == "bits" else "items"
        lower = "lower is better, " if measure.lower_is_better else ""
        shown.append(Column(measure.title, f"{lower}{items:,} {unit}", cells))
    return shown


def answer_columns(
    answers: Mapping[str, Sequence[Answered]], title: str, is_in_language: Callable[[str], bool] | None
) -> list[Column]:
    """Return how many answers end by themselves, and how many are in the language. title: the language's name."""
    every: list[tuple[str, Callable[[Answered], bool]]] = [("answers that end by themselves", lambda one: one.ended)]
    if is_in_language is not None:
        every.append((f"answers in {title}", lambda one: is_in_language(one.answer)))
    return [
        Column(
            name, "", {model: counted(sum(map(test, given)), len(given)) for model, given in answers.items() if given}
        )
        for name, test in every
        if any(answers.values())
    ]


def counted(count: int, of: int) -> ScoreCell:
    """Return a count with the interval of its share (Wilson)."""
    low, high = wilson(count, of)
    return ScoreCell(f"{count} of {of}", f"{100 * low:.0f}% to {100 * high:.0f}%")


def markdown(columns: Sequence[Column], titles: Mapping[str, str]) -> str:
    """Return the scores as Markdown: a row per measure, a column per model. titles: of models, in their order."""

    def cell(shown: ScoreCell | None) -> str:
        return "–" if shown is None else f"{shown.value} [{shown.interval.replace(' to ', ', ')}]"

    rows = [
        [
            f"{column.title} ({column.remark})" if column.remark else column.title,
            *(cell(column.cells.get(model)) for model in titles),
        ]
        for column in columns
    ]
    head = ["measure", *titles.values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def asked(by_template: Mapping[str, bool], titles: Mapping[str, str]) -> str:
    """Return how models were prompted: `Plain prompts: base, CT. By the chat template: chat model, adapted model.`"""
    parts = []
    for words, wanted in (("Plain prompts", False), ("By the chat template", True)):
        if named := [title for model, title in titles.items() if by_template.get(model) is wanted]:
            parts.append(f"{words}: {', '.join(named)}.")
    return " ".join(parts)


def dev_rows(candidates: Sequence[Candidate], choice: AdaptChoice) -> DataFrame:
    """Return the candidates with their scores on dev, and what became of them."""
    rows = [
        {
            **vars(one),
            "name": CHAT_TITLE if one.candidate == CHAT else adapt_claims.name_of(one),
            "settings": json.dumps(one.settings, ensure_ascii=False),
            "chosen": one.candidate == choice.candidate,
        }
        for one in candidates
    ]
    return frame(("candidate", "method", "settings", "gain", "keep", "kept", "chosen", "name"), rows)


def trials_csv(rows: DataFrame, choice: AdaptChoice) -> str:
    """Return tries.csv; the columns gain and keep have the names of the measures."""
    names = {"gain": f"dev_{choice.gain}", "keep": f"dev_{choice.keep}"}
    return data.csv_text(rows.drop(columns="name").rename(columns=names))


def trials_map(rows: DataFrame, choice: AdaptChoice, gain: AdaptMeasure, keep: AdaptMeasure) -> Chart:
    """Draw all trials on dev: what each gained against what it kept. Better is up, and right of the line.

    The line is the value of `keep` that a trial must reach: the chat model's, less the tolerance.
    """
    is_chat = rows.candidate == CHAT
    table = DataFrame(
        {
            "title": rows.method.map(label).mask(is_chat, CHAT_TITLE),
            "settings": rows["name"],
            "keep": rows.keep.map(lambda value: round(value, DIGITS)),
            "gain": rows.gain.map(lambda value: round(value, DIGITS)),
            "status": [
                "chosen" if row.chosen else "within the tolerance" if row.kept else "loses too much"
                for row in rows.itertuples()
            ],
            "label": [
                ", ".join([CHAT_TITLE] * (row.candidate == CHAT) + ["chosen"] * row.chosen) for row in rows.itertuples()
            ],
        },
        dtype=object,
    )
    edge = rows.keep[is_chat].iloc[0] + (choice.tolerance if keep.lower_is_better else -choice.tolerance)
    floor = frame(("keep", "level"), [(round(edge, DIGITS), "tolerance")])
    titles = list(table.title.unique())
    place = {"x": _axis("keep", keep, "kept"), "y": _axis("gain", gain, "gained")}
    guide: Spec = {"title": None, "orient": "bottom", "columns": 2, "symbolLimit": 0}

    def scale(of_chat: str, others: Sequence[str]) -> Spec:
        values = [of_chat if title == CHAT_TITLE else others[n % len(others)] for n, title in enumerate(titles)]
        return {"field": "title", "type": "nominal", "scale": {"domain": titles, "range": values}, "legend": guide}

    trials: Spec = {"data": {"name": "tries"}}
    level: Spec = {
        "type": "text",
        "align": "left",
        "dx": 4,
        "baseline": "bottom",
        "color": SOFT,
        "y": "height",
        "dy": -4,
    }
    layers: list[Spec] = [
        {
            "data": {"name": "floor"},
            "mark": {"type": "rule", "color": SOFT, "strokeDash": [5, 4]},
            "encoding": {"x": place["x"]},
        },
        {"data": {"name": "floor"}, "mark": level, "encoding": {"x": place["x"], "text": {"field": "level"}}},
        {
            **trials,
            "transform": [{"filter": "datum.status === 'chosen'"}],
            "mark": {"type": "point", "size": 420, "strokeWidth": 2, "color": INK},
            "encoding": place,
        },
        {
            **trials,
            "mark": {"type": "point", "filled": True, "size": 85},
            "encoding": {
                **place,
                "color": scale(INK, PALETTE),
                "shape": scale("diamond", SHAPES[:4]),
                "opacity": {"condition": {"test": "datum.status === 'loses too much'", "value": 0.4}, "value": 1},
                "tooltip": [
                    *tooltip("settings: candidate"),
                    {"field": "gain", "title": gain.title, "format": ".3f"},
                    {"field": "keep", "title": keep.title, "format": ".3f"},
                    {"field": "status"},
                ],
            },
        },
        {
            **trials,
            "transform": [{"filter": "datum.label !== ''"}],
            "mark": {"type": "text", "dy": -18, "color": INK, "fontWeight": 600},
            "encoding": {**place, "text": {"field": "label"}},
        },
    ]
    return Chart(name="tries", spec=sized({"layer": layers}, 360, None), tables={"tries": table, "floor": floor})


def _axis(name: str, measure: AdaptMeasure, what: str) -> Spec:
    lower = ", lower is better" if measure.lower_is_better else ""
    scale = {"zero": False, "padding": 40, **({"reverse": True} if measure.lower_is_better else {})}
    return number(name, f"{what}: {measure.title} on dev{lower}", scale=scale, axis={"tickCount": 6})


def described(rows: DataFrame, gain: AdaptMeasure, keep: AdaptMeasure) -> str:
    """Return the map in words, for a screen reader."""
    points = [
        f"{row.name}: {row.gain:.3f} and {row.keep:.3f}{', chosen' if row.chosen else ''}" for row in rows.itertuples()
    ]
    return f"Points of {gain.title} against {keep.title} on dev, one per try. {'; '.join(points)}."
