"""What the page of a report shows, as plain values: charts with their data and choices, text, tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pandas import DataFrame

from common.units import counted, duration, format_tokens
from pipeline.baselines import BASELINES
from pipeline.report import summary
from pipeline.report.analysis import Analysis
from pipeline.report.charts import frontiers, merges, scores, stages
from pipeline.report.charts.search import search, search_table
from pipeline.report.charts.style import (
    INK,
    PAGE_COLOURS,
    SOFT,
    Chart,
    MethodStyle,
    colored,
    method_styles,
    shown_first,
    theme,
)
from pipeline.report.claims import Answer
from pipeline.report.data import DataExposure, Measure, all_measures, budgets_of, methods_of
from pipeline.report.formatting import label, labels, listed
from pipeline.report.gaps import PAIR
from pipeline.report.merges import SAMPLERS, Selected, Spread, task_vectors_over_seeds
from pipeline.report.paired import KINDS
from pipeline.report.records import ReportInfo
from pipeline.report.samples import GeneratedItem, ItemSamples
from pipeline.report.stages import Prices, StageRecords, prices

TEMPLATE = "page.html.jinja"
SLACK_MEASURES = [("accuracy", "mean accuracy"), ("bits", "bits per byte"), ("lost_top", "share lost of SFT's top 5%")]
Options = Sequence[tuple[Any, str]]  # what a reader may choose among: values, and what is shown


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The charts of a report that have data, and all tables that the page's script reads.

    styles: by method, in their order. state: what a reader sees first, by the name of the choice.
    """

    charts: Mapping[str, Chart]
    tables: Mapping[str, DataFrame]
    styles: Mapping[str, MethodStyle]
    measures: Sequence[Measure]
    state: Mapping[str, Any]
    prices: Prices


def picture(found: Analysis, width: int | None = None) -> Picture:
    """Return the charts. width: of a figure's drawing area in pixels; None for a page."""
    info, measures = found.info, all_measures(found.scores, found.info.language)
    styles = method_styles(found.scores.method, found.recipes)
    budgets = [budget for budget in budgets_of(found.scores) if budget]
    of_frontiers = frontiers.tables(found.gaps, found.claims.answers)
    pair = next(iter(of_frontiers["windows"].pair), None)
    of_pair = pair.split(PAIR) if pair else []
    first = list(dict.fromkeys([*shown_first(styles), *of_pair]))  # a gap is shown with its frontiers
    # a legend names what is drawn, and no more
    drawn = [style for method, style in styles.items() if width is None or method in first]
    tradeoff = scores.tradeoff_table(found.scores, info.language)
    priced = prices(tradeoff, found.costs)
    levels, slack = scores.levels_table(measures), merges.slack_table(tradeoff, found.discarded)
    searched = search_table(found.selected)
    charts = (
        scores.claims(found.claims.answers, width),
        scores.curves(scores.scores_table(found.scores, measures), levels, drawn, budgets, width),
        scores.tradeoff(tradeoff, drawn, info.language_name, width),
        stages.price(priced.table, drawn, width),
        frontiers.frontiers(of_frontiers, drawn, info.language_name, width),
        frontiers.gap(of_frontiers, info.language_name, width),
        frontiers.forest(of_frontiers["forest"], width),
        merges.heat(merges.parts_table(found.discarded), width),
        merges.slack(slack, budgets, width),
        scores.predictions(scores.predictions_table(found.scores, info.language), drawn, width),
        stages.training(found.stages.training_curves(info), width),
        stages.hours(found.stages.hours, width),
        search(searched, next((one.metric for one in found.selected if one.sampler), ""), styles, width),
    )
    tables = {name: table for chart in charts for name, table in chart.tables.items()}
    tables["untuned"] = scores.scores_table(found.untuned, measures)
    tables["differences"] = scores.differences_table(found.claims.comparisons)
    windows = tables["windows"]
    in_frontiers = tables["frontiers"] if windows.empty else windows
    state = {
        "methods": first,
        "measure": measures[0].id if measures else None,
        "merge": next(iter(tables["parts"].method[::-1]), None),
        "quantity": "lost_top",
        "measured": "accuracy",
        "group": next(iter(slack.group), None),
        "searched": next(iter(searched.group[::-1]), None),
        "task": next(iter(tables["predictions"].task), None),
        "budget": budgets[-1] if budgets else 0,
        "pair": pair,
        "frontier_budget": max(in_frontiers.tokens, default=0),
        "cost": "time",
        "scored": "accuracy",
        "baseline": next(iter(tables["differences"].baseline), None),
        "kind": next(iter(tables["differences"].kind), None),
    }
    return Picture(
        charts={chart.name: chart for chart in charts if chart.has_data},
        tables=tables,
        styles=styles,
        measures=measures,
        state=state,
        prices=priced,
    )


@dataclass(frozen=True, kw_only=True)
class PageView:
    """What page.html.jinja shows.

    has: whether a table has rows, by its name. options: by the name of the choice. facts: the run in a few numbers.
    text: by budget, the data exposure of each language by name. generated: with the names of their languages. compared:
    the number of paired differences. configs: texts with their titles.
    """

    info: ReportInfo
    sentences: Sequence[str]
    question: str | None
    terms: Sequence[tuple[str, str]]
    notes: Sequence[str]
    facts: Sequence[tuple[str, str]]
    answers: Sequence[Answer]
    hypotheses: str | None
    has: Mapping[str, bool]
    options: Mapping[str, Options]
    compared: int
    samples: ItemSamples
    generated: Sequence[tuple[str, GeneratedItem]]
    price_sentence: str
    spent_seconds: float
    saved_seconds: float
    task_vectors: Sequence[tuple[str, int, Mapping[str, Spread | None]]]
    selected: Sequence[Selected]
    search_sentence: str
    sft_settings: str | None
    text: Sequence[tuple[int, Sequence[tuple[str, DataExposure]]]]
    contamination: Mapping[str, Any] | None
    stages: StageRecords
    configs: Sequence[tuple[str, str]]
    script_data: dict[str, Any]


def page_view(found: Analysis) -> PageView:
    """Return what the page shows."""
    seen, info, answers = picture(found), found.info, found.claims.answers
    spent, saved = found.stages.total_hours
    stated = [note for config in info.configs.values() for note in config.get("notes", ())]
    return PageView(
        info=info,
        sentences=summary.sentences(answers, info.language_name, budgets_of(found.scores))
        if answers
        else [summary.of_comparisons(found.claims.comparisons)],
        question=summary.question(found.scores),
        terms=summary.terms(found.scores, info, not seen.tables["frontiers"].empty),
        notes=list(dict.fromkeys([*stated, *found.stages.vocabularies])),
        facts=_facts(found),
        answers=answers,
        hypotheses=found.hypotheses,
        has={name: not table.empty for name, table in seen.tables.items()},
        options=_options(found, seen),
        compared=len(found.claims.comparisons),
        samples=found.samples,
        generated=[(info.languages.get(item.language, item.language), item) for item in found.generated],
        price_sentence=seen.prices.sentence,
        spent_seconds=spent * 3600,
        saved_seconds=saved * 3600,
        task_vectors=task_vectors_over_seeds(found.task_vectors),
        selected=found.selected,
        search_sentence=_search_sentence(found.selected),
        sft_settings=_sft_settings(info.configs, methods_of(found.scores)),
        text=[
            (budget, [(info.languages.get(e.language, e.language), e) for e in found.exposure if e.budget == budget])
            for budget in dict.fromkeys(exposure.budget for exposure in found.exposure)
        ],
        contamination=found.contamination,
        stages=found.stages,
        configs=configs_text(info.configs),
        script_data=script_data(
            seen.charts.values(),
            seen.tables,
            state=seen.state,
            styles=[vars(style) for style in seen.styles.values()],
            measures=[
                {
                    "id": measure.id,
                    "name": measure.name,
                    "language": info.languages.get(measure.language, measure.language),
                    "lower": measure.lower_is_better,
                }
                for measure in seen.measures
            ],
            labels={method: style.title for method, style in seen.styles.items()},
            kinds=dict(KINDS),
        ),
    )


def script_data(charts: Iterable[Chart], tables: Mapping[str, DataFrame], **more: Any) -> dict[str, Any]:
    """Return what page.js reads. more: what differs from a page with one chart and nothing to choose."""
    return {
        "state": {},
        "styles": [],
        "measures": [],
        "labels": {},
        "kinds": {},
        **more,
        "tables": {name: packed(table) for name, table in tables.items()},
        "charts": [
            {
                "name": chart.name,
                "spec": colored(chart.spec, PAGE_COLOURS),
                "tables": {name: chart.filters.get(name, {}) for name in chart.tables},
                "params": chart.params,
            }
            for chart in charts
        ],
        "config": theme(PAGE_COLOURS[INK], PAGE_COLOURS[SOFT], "var(--line)"),
        "colours": PAGE_COLOURS,
    }


def packed(table: DataFrame) -> dict[str, Any]:
    """Encode columns of text as numbers into a list of their values, so that each text is stored once."""
    columns, packed = [], []
    for name in table:
        values = table[name].tolist()
        if any(isinstance(value, str) for value in values):
            words = {word: place for place, word in enumerate(dict.fromkeys(values))}
            columns.append({"name": name, "values": list(words)})
            values = [words[value] for value in values]
        else:
            columns.append({"name": name})
        packed.append(values)
    return {"columns": columns, "rows": list(zip(*packed, strict=True))}


def _options(found: Analysis, seen: Picture) -> dict[str, Options]:
    budgets = found.gaps.frontiers.budgets if found.gaps else ()
    names = found.info.languages
    return {
        "measure": [(m.id, f"{names.get(m.language, m.language)}: {m.name}") for m in seen.measures],
        "merge": _methods(seen.tables["parts"].method),
        "quantity": list(merges.QUANTITIES.items()),
        "measured": SLACK_MEASURES,
        "cost": list(seen.prices.names.items()),
        "scored": SLACK_MEASURES[:2],
        "group": [(group, group) for group in seen.tables["slack"].group.unique()],
        "searched": [(group, group) for group in seen.tables["search"].group.unique()],
        "task": [(task, task) for task in seen.tables["predictions"].task.unique()],
        "budget": [(budget, format_tokens(budget)) for budget in budgets_of(found.scores) if budget],
        "frontier_budget": [(budget, format_tokens(budget)) for budget in budgets],
        "pair": list(found.gaps.pairs.items()) if found.gaps else [],
        "baseline": _methods(seen.tables["differences"].baseline),
        "kind": [(kind, KINDS[kind]) for kind in KINDS if any(c.kind == kind for c in found.claims.comparisons)],
    }


def _methods(column: Iterable[str]) -> Options:
    """Return the methods of a column, each once, with their titles."""
    return list(labels(list(dict.fromkeys(column))).items())


def _facts(found: Analysis) -> list[tuple[str, str]]:
    """Return the run in a few numbers."""
    budgets = [format_tokens(budget) for budget in budgets_of(found.scores) if budget]
    seeds = sorted(found.scores.seed.unique())
    known = [
        ("CT budgets", f"{', '.join(budgets)} tokens" if budgets else "none"),
        ("methods", str(found.scores.method.nunique())),
        ("seed" if len(seeds) == 1 else f"{len(seeds)} seeds", ", ".join(map(str, seeds))),
        ("models scored", str(len(found.scores[["method", "ct_tokens", "seed"]].drop_duplicates()))),
    ]
    return known + ([("computing time", duration(found.stages.seconds))] if found.stages else [])


def _search_sentence(selected: Sequence[Selected]) -> str:
    """Return which settings a search found, and how; empty without a search."""
    searched = [one for one in selected if one.sampler]
    if not searched:
        return ""
    first, names = searched[0], list(dict.fromkeys(label(one.method) for one in searched))
    how = (
        "draws each candidate at random" if first.sampler == "random" else "proposes each candidate from scores on dev"
    )
    sampler = f"optuna, {SAMPLERS.get(first.sampler or '', first.sampler)}"
    return (
        f"The settings of {listed(names)} come from a search ({sampler}) over {first.trials} candidates for each model."
        f" It {how}; the first is the middle of the space. Test items played no part."
    )


def _sft_settings(configs: Mapping[str, Mapping[str, Any]], methods: Iterable[str]) -> str | None:
    """Return which checkpoints have fixed SFT settings while those of CT-then-SFT were selected on dev, if any."""
    sections = [config["sft"] for config in configs.values() if (config.get("sft") or {}).get("grid")]
    fixed = [label(method) for method in methods if method in BASELINES and BASELINES[method].sft_as_stated]
    if not sections or not fixed:
        return None
    keys = ", ".join(f"{key} of {', '.join(map(str, values))}" for key, values in sections[0]["grid"].items())
    return (
        f"CT-then-SFT was trained with the SFT settings that were best on dev ({keys}); "
        f"{', '.join(fixed)} and what is merged of them with the settings stated in the config."
    )


def configs_text(configs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the config of the first cell, then the settings of the others that differ."""
    import yaml

    if not configs:
        return []
    (first, config), *others = configs.items()
    texts = [(f"Config of {first}", str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)))]
    known = _flat(config)
    lines = []
    for name, other in others:
        differing = (f"{key}={value}" for key, value in _flat(other).items() if known.get(key) != value)
        lines.append(f"{name}: {', '.join(differing)}")
    if others:
        texts.append((f"Settings that differ in the other {counted(len(others), 'cell')}", "\n".join(lines)))
    return texts


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return a nested config by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat
