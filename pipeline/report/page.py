"""One self-contained HTML page: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.units import format_tokens
from pipeline.report import (
    chart_data,
    frontier_charts,
    frontier_tables,
    headline,
    merge_charts,
    one_file,
    page_tables,
    price,
    score_charts,
    terms,
)
from pipeline.report.chart_data import Table
from pipeline.report.choices import Chosen
from pipeline.report.claims import Claims
from pipeline.report.discards import Discarded
from pipeline.report.looks import INK, SOFT, Look, looks, shown_first
from pipeline.report.paired import KINDS
from pipeline.report.records import Row, Subject, label, labels
from pipeline.report.results import Measure, budget_name, budgets_of
from pipeline.report.sample_items import GeneratedItem, Sample
from pipeline.report.text_of_budgets import TextOfBudget
from pipeline.report.vega import PAGE_COLOURS, Chart, colored, theme
from pipeline.report.wording import by_part

TEMPLATE = "page.html.jinja"
SLACK_MEASURES = (("accuracy", "mean accuracy"), ("bits", "bits per byte"), ("lost_top", "share lost of SFT's top 5%"))


@dataclass(frozen=True)
class Findings:
    """The data of a page and its figures.

    samples: with the budget and the seed of their answers. recipes: by the merge, its recipe's method.
    untuned: scores of tuned methods with their first candidate. text: the text that each budget reads.
    hypotheses: the name of the file that the claims are from, if they are an experiment's own. costs: of methods by
    CT budget. generated: texts of methods, of the budget and the seed of `samples`.
    """

    rows: Sequence[Row]
    claims: Claims
    discarded: Sequence[Discarded]
    chosen: Sequence[Chosen]
    stages: Sequence[Mapping[str, Any]]
    subject: Subject
    leaks: Mapping[str, Any] | None = None
    samples: tuple[Sequence[Sample], int, int] = ((), 0, 0)
    recipes: Mapping[str, str] = field(default_factory=dict)
    untuned: Sequence[Row] = ()
    text: Sequence[TextOfBudget] = ()
    frontiers: frontier_tables.Found | None = None
    hypotheses: str | None = None
    generated: Sequence[GeneratedItem] = ()
    costs: Mapping[tuple[str, int], price.Cost] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """The charts of a run, their data, how methods look, and the first selection."""

    charts: Mapping[str, Chart]
    tables: Mapping[str, Table]
    looks: Mapping[str, Look]
    measures: Sequence[Measure]
    state: Mapping[str, Any]
    unit: str


def picture(found: Findings, width: int | None = None) -> Picture:
    """Charts as wide as their place, or figures of this width, in pixels."""
    language, name = found.subject.language, found.subject.language_name
    drawn = looks((row.method for row in found.rows), found.recipes)
    measures = chart_data.all_measures(found.rows, language)
    budgets = [budget for budget in budgets_of(found.rows) if budget]
    plane = chart_data.plane(found.rows, language)
    priced, unit = price.table(plane, found.costs)
    tables = {
        "claims": page_tables.claims(found.claims.answers),
        "scores": chart_data.scores(found.rows, measures),
        "untuned": chart_data.scores(found.untuned, measures),
        "levels": chart_data.levels(measures),
        "plane": plane,
        "price": priced,
        "parts": chart_data.parts(found.discarded),
        "slack": chart_data.slack_sweep(found.rows, found.discarded, language),
        "predictions": chart_data.predictions(found.rows, language),
        "differences": chart_data.differences(found.claims.comparisons),
        "hours": chart_data.hours(found.stages),
        "training": chart_data.training(found.stages, language, name),
        **frontier_tables.tables(found.frontiers, found.claims.answers),
    }
    shown = tables["windows"] if tables["windows"].rows else tables["frontiers"]
    state: dict[str, Any] = {
        "methods": shown_first(drawn),
        "measure": chart_data.measure_id(measures[0]) if measures else None,
        "merge": next((row[0] for row in reversed(tables["parts"].rows)), None),
        "quantity": "lost_top",
        "measured": "accuracy",
        "group": next((row[0] for row in tables["slack"].rows), None),
        "task": next((row[0] for row in tables["predictions"].rows), None),
        "budget": budgets[-1] if budgets else 0,
        "pair": next((row[0] for row in tables["windows"].rows), None),
        "frontier_budget": max((int(str(row[1])) for row in shown.rows), default=0),
        "cost": "time",
        "scored": "accuracy",
        "baseline": next((row[1] for row in tables["differences"].rows), None),
        "kind": next((row[0] for row in tables["differences"].rows), None),
    }
    # a legend names what is drawn, and no more
    listed = [look for method, look in drawn.items() if width is None or method in state["methods"]]
    parts = list(dict.fromkeys(str(row[3]) for row in tables["parts"].rows))
    by_slack = {float(row[4]): str(row[3]) for row in tables["slack"].rows}  # type: ignore[arg-type]
    every = (
        score_charts.claims(len(tables["claims"].rows), width),
        score_charts.curves(listed, budgets, width),
        score_charts.plane(listed, name, width),
        score_charts.price(listed, width),
        frontier_charts.frontiers(listed, name, width),
        frontier_charts.gap(name, width),
        frontier_charts.forest(tables["forest"], width),
        merge_charts.heat(parts, width),
        merge_charts.slack([by_slack[order] for order in sorted(by_slack)], budgets, width),
        score_charts.predictions(listed, width),
        merge_charts.training(list(dict.fromkeys(str(row[1]) for row in tables["training"].rows)), width),
        merge_charts.hours(len(tables["hours"].rows) // 2, width),
    )
    data_of = {"curves": "scores", "heat": "parts"}
    charts = {chart.name: chart for chart in every if tables[data_of.get(chart.name, chart.name)].rows}
    return Picture(charts, tables, drawn, measures, state, unit)


def render(found: Findings) -> str:
    """The page."""
    seen, subject = picture(found), found.subject
    spent, saved = chart_data.total_hours(seen.tables["hours"])
    answers = found.claims.answers
    names = {subject.language: subject.language_name, "en": "English"}
    samples, sample_budget, sample_seed = found.samples
    return one_file.render(
        TEMPLATE,
        _script_data(seen, names),
        {"label": label, "budget": budget_name, "number": _number, "unit": headline.unit, "by_part": by_part},
        subject=subject,
        sentences=headline.sentences(answers, subject.language_name, budgets_of(found.rows))
        if answers
        else [headline.of_comparisons(found.claims.comparisons)],
        terms=terms.terms(found.rows, subject.language, subject.language_name, bool(seen.tables["frontiers"].rows)),
        notes=_notes(subject, found.stages),
        facts=page_tables.facts(found.rows, found.stages),
        finished=max((str(record["finished"]) for record in found.stages), default="")[:16].replace("T", " "),
        answers=answers,
        hypotheses=found.hypotheses,
        has={name: bool(table.rows) for name, table in seen.tables.items()},
        **_choices(found, seen, names),
        counted=len(found.claims.comparisons),
        samples=samples,
        generated=[(names.get(item.language, item.language), item) for item in found.generated],
        sample_budget=sample_budget,
        sample_seed=sample_seed,
        price_sentence=price.sentence(seen.tables["price"], seen.unit),
        spent=spent * 3600,
        saved=saved * 3600,
        performances=page_tables.performances(found.stages),
        chosen=[(choice, page_tables.settings_text(choice.settings)) for choice in found.chosen],
        sft_settings=page_tables.sft_settings(subject.configs, dict.fromkeys(row.method for row in found.rows)),
        text=[
            (budget, [(names.get(one.language, one.language), one) for one in found.text if one.budget == budget])
            for budget in dict.fromkeys(one.budget for one in found.text)
        ],
        leaks=found.leaks,
        stages=found.stages,
        checksums=page_tables.checksums(found.stages),
        versions=page_tables.distinct(record.get("versions") for record in found.stages),
        commits=[str(commit) for commit in page_tables.distinct(record.get("commit") for record in found.stages)],
        configs=page_tables.configs_text(subject.configs),
    )


def _choices(found: Findings, seen: Picture, names: Mapping[str, str]) -> dict[str, Sequence[tuple[Any, str]]]:
    """What a reader may choose among, by the name that the template has for it: values and what is shown."""
    return {
        "measures": [
            (chart_data.measure_id(m), f"{names.get(m.language, m.language)}: {m.name}") for m in seen.measures
        ],
        "merges": _options(seen.tables["parts"], 0),
        "quantities": list(chart_data.QUANTITIES.items()),
        "slack_measures": SLACK_MEASURES,
        "costs": [(cost, text.format(unit=seen.unit)) for cost, text in price.COSTS.items()],
        "scored": SLACK_MEASURES[:2],
        "groups": [(group, group) for group, _ in _options(seen.tables["slack"], 0)],
        "tasks": [(task, task) for task, _ in _options(seen.tables["predictions"], 0)],
        "budgets": [(budget, format_tokens(budget)) for budget in budgets_of(found.rows) if budget],
        "frontier_budgets": [
            (budget, format_tokens(budget)) for budget in (found.frontiers.frontiers.budgets if found.frontiers else ())
        ],
        "pairs": list(found.frontiers.pairs.items()) if found.frontiers else [],
        "baselines": _options(seen.tables["differences"], 1),
        "kinds": [(kind, KINDS[kind]) for kind in KINDS if any(c.kind == kind for c in found.claims.comparisons)],
    }


def _number(value: float) -> str:
    return f"{value:.3f}" if value != float("inf") else "\u221e"


def _options(table: Table, place: int) -> list[tuple[str, str]]:
    """The methods of a column, each once, with their titles."""
    return list(labels(list(dict.fromkeys(str(row[place]) for row in table.rows))).items())


def _notes(subject: Subject, stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the sentences under the headline: of the config, and of models with new tokens."""
    stated = [note for config in subject.configs.values() for note in config.get("notes", ())]
    return list(dict.fromkeys([*stated, *(str(record["vocabulary"]) for record in stages if record.get("vocabulary"))]))


def _script_data(seen: Picture, names: Mapping[str, str]) -> dict[str, Any]:
    """What the page's script reads."""
    return {
        "state": seen.state,
        "looks": [vars(look) for look in seen.looks.values()],
        "measures": [
            {
                "id": chart_data.measure_id(measure),
                "name": measure.name,
                "language": names.get(measure.language, measure.language),
                "lower": measure.lower_is_better,
            }
            for measure in seen.measures
        ],
        "tables": {name: table.packed() for name, table in seen.tables.items()},
        "charts": [{**vars(chart), "spec": colored(chart.spec, PAGE_COLOURS)} for chart in seen.charts.values()],
        "config": theme(PAGE_COLOURS[INK], PAGE_COLOURS[SOFT], "var(--line)"),
        "colours": PAGE_COLOURS,
        "labels": {method: look.title for method, look in seen.looks.items()},
        "kinds": dict(KINDS),
    }
