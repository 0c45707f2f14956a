"""One self-contained HTML page: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.units import format_tokens
from pipeline.report.choices import Chosen
from pipeline.report.claims import Claims
from pipeline.report.discards import TOPS, Discarded
from pipeline.report.paired import AGAINST, KINDS, Comparison
from pipeline.report.records import Row, Subject, label
from pipeline.report.results import (
    OVERALL,
    Measure,
    best,
    budget_name,
    budgets_of,
    languages,
    measures,
    methods_in_order,
    points,
)
from pipeline.report.wording import interval, percent, signed
from pipeline.run.console import duration

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Cell:
    """A number in a table, as text: its interval and more of it, and whether it is the best of its column."""

    text: str
    interval: str = ""
    best: bool = False


Judged = tuple[Cell, str]  # with its verdict


@dataclass(frozen=True)
class Block:
    """A measure of the results table: its methods with a cell per budget."""

    measure: Measure
    lines: list[tuple[str, list[Cell | None]]]


@dataclass(frozen=True)
class Histogram:
    """A task's answers under one metric: by method and budget, how often each label was given."""

    task: str
    metric: str
    labels: list[str]
    counts: dict[tuple[str, int], dict[str, int]]


def render(
    rows: Sequence[Row],
    claims: Claims,
    discarded: Sequence[Discarded],
    chosen: Sequence[Chosen],
    stages: Sequence[Mapping[str, Any]],
    subject: Subject,
    curves_svg: Path,
    discards_svg: Path | None,
    leaks: Mapping[str, Any] | None,
) -> str:
    """The page. `stages` are the records that stage.json files hold, `leaks` what leaks.json holds, or None."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        label=label, budget=budget_name, tokens=format_tokens, share=percent, duration=duration, interval=interval
    )
    names = {subject.language: subject.language_name, "en": "English"}
    finished = max((str(record["finished"]) for record in stages), default="")
    return environment.get_template(TEMPLATE).render(
        subject=subject,
        names=names,
        facts=facts(rows, stages),
        finished=finished[:16].replace("T", " "),
        answers=claims.answers,
        predictions=predictions(rows, subject.language),
        comparisons=[(baseline, differences(claims.comparisons, baseline)) for baseline in AGAINST],
        counted=len(claims.comparisons),
        curves=data_uri(curves_svg),
        discards_figure=data_uri(discards_svg) if discards_svg else None,
        budgets=budgets_of(rows),
        ct_budgets=[budget for budget in budgets_of(rows) if budget],
        tables=[
            (names.get(language, language), blocks(rows, language)) for language in languages(rows, subject.language)
        ],
        overall=OVERALL,
        discarded=discarded,
        tops=TOPS,
        chosen=chosen,
        chosen_settings=[settings_text(choice.settings) for choice in chosen],
        leaks=leaks,
        kinds=by_kind(stages),
        stages=sorted(stages, key=lambda record: str(record["finished"])),
        versions=distinct(record.get("versions") for record in stages),
        commits=[str(commit) for commit in distinct(record.get("commit") for record in stages)],
        configs=[(name, yaml_text(config)) for name, config in subject.configs.items()],
    )


def facts(rows: Sequence[Row], stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The run in a few numbers."""
    budgets = [format_tokens(budget) for budget in budgets_of(rows) if budget]
    seeds = sorted({row.seed for row in rows})
    return [
        ("CT budgets", ", ".join(budgets) or "none"),
        ("methods", str(len({row.method for row in rows}))),
        ("seed" if len(seeds) == 1 else "seeds", ", ".join(map(str, seeds))),
        ("checkpoints scored", str(len({(row.method, row.ct_tokens, row.seed) for row in rows}))),
        ("stages", str(len(stages))),
        ("computing time", duration(sum(record["seconds"] for record in stages))),
    ]


def blocks(rows: Sequence[Row], language: str) -> list[Block]:
    """The results table of a language."""
    table, budgets = [], budgets_of(rows)
    for measure in measures(rows, language):
        scores = points(rows, measure)
        bold = best(scores, measure)
        lines: list[tuple[str, list[Cell | None]]] = []
        for method in methods_in_order(method for method, _ in scores):
            cells = {
                budget: Cell(f"{point.value:.3f}", f"{point.low:.3f} to {point.high:.3f}", (method, budget) in bold)
                for (other, budget), point in scores.items()
                if other == method
            }
            lines.append((method, [cells.get(budget) for budget in budgets]))
        table.append(Block(measure, lines))
    return table


def judged(comparison: Comparison) -> Judged:
    """A comparison as a cell."""
    difference = comparison.difference
    interval = f"{signed(difference.low)} to {signed(difference.high)}; mdd {difference.mdd:.3f}"
    return Cell(signed(difference.value), interval), comparison.verdict


def differences(comparisons: Sequence[Comparison], baseline: str) -> list[tuple[str, str, list[Judged | None]]]:
    """Against one baseline: (kind, method, a cell and its verdict per budget)."""
    against = {
        (comparison.kind, comparison.method, comparison.ct_tokens): comparison
        for comparison in comparisons
        if comparison.baseline == baseline
    }
    budgets = sorted({comparison.ct_tokens for comparison in comparisons})
    lines = []
    order = list(KINDS)
    for kind, method in sorted(dict.fromkeys(key[:2] for key in against), key=lambda pair: order.index(pair[0])):
        line = [against.get((kind, method, budget)) for budget in budgets]
        cells = [judged(comparison) if comparison else None for comparison in line]
        lines.append((KINDS[kind], method, cells))
    return lines


def predictions(rows: Sequence[Row], language: str) -> list[Histogram]:
    """How often each label was the answer, of each task of a fixed set of labels, summed over seeds."""
    histograms: dict[tuple[str, str], Histogram] = {}
    for row in rows:
        if row.language == language and row.predictions is not None and (row.primary or row.metric == "acc"):
            histogram = histograms.setdefault((row.task, row.metric), Histogram(row.task, row.metric, [], {}))
            histogram.labels[:] = list(row.predictions)
            counts = histogram.counts.setdefault((row.method, row.ct_tokens), dict.fromkeys(row.predictions, 0))
            for label_, count in row.predictions.items():
                counts[label_] += count
    return list(histograms.values())


def by_kind(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, float]]:
    """(kind, how many, seconds), the longest first."""
    by_name: dict[str, list[float]] = {}
    for record in stages:
        by_name.setdefault(record["kind"], []).append(record["seconds"])
    return sorted(((kind, len(seconds), sum(seconds)) for kind, seconds in by_name.items()), key=lambda line: -line[2])


def distinct(values: Any) -> list[Any]:
    """Each value that is not None once, as they come."""
    seen: list[Any] = []
    for value in values:
        if value is not None and value not in seen:
            seen.append(value)
    return seen


def settings_text(settings: Mapping[str, Any]) -> str:
    """Chosen settings in one line, the method aside (its name is in the table already)."""
    return ", ".join(f"{key} = {value}" for key, value in settings.items() if key != "method")


def yaml_text(config: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def data_uri(svg: Path) -> str:
    """A picture as a part of the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()
