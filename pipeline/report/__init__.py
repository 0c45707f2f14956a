"""Results -> tables, figures, claims, one HTML page.

Comes in: folders of a run, by `Evaluation` (scores.jsonl, samples.jsonl), `Audit` (audit.json) and `Choice`
(choice.yml, tries.jsonl), and the records of stage.json files; nothing of the store or of a config is asked.
Goes out: results.csv, results.md; with intervals results-intervals.md and results.tex; claims.json (a claim a row),
gates.json (a gate a row, where target_sft was scored), frontier.csv and gaps.json (where every knob value was scored),
stages.csv, figures/ (SVG, PDF, PNG) and report.html, each whole or not at all; the same input gives the same bytes (but
of PDFs). The table for a terminal comes back as text.
May be touched: the output folder of `render`.

    results     records as rows and tables; paper_tables: LaTeX
    paired      differences (inference: intervals; findings, claims: verdicts; headline: one sentence)
    frontier    gaps of curves at equal bits; hypotheses, stated_when, hypothesis_answers: what an experiment is asked
    price       computing time and trained tokens of each method
    chart_data  tables that charts are drawn from; vega, *_charts: the charts; looks: of methods
    figures     charts as files; page: charts, tables and items as one page (page_tables, page.html.jinja, .css, .js)

No torch is imported for it, and nothing is drawn before `render`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import write_atomic, write_json
from pipeline.report.records import ENGLISH, Audit, Choice, Evaluation, FrontierPoint, ReportPaths, Subject, label

if TYPE_CHECKING:
    from pipeline.report.page import Findings

__all__ = ["Audit", "Choice", "Evaluation", "FrontierPoint", "ReportPaths", "Subject", "render"]
FIGURE_WIDTH = 440  # pixels of a figure's drawing area; a page draws as wide as its place


def render(
    evaluations: Sequence[Evaluation],
    audits: Sequence[Audit],
    choices: Sequence[Choice],
    stages: Sequence[Mapping[str, Any]],
    out: Path,
    subject: Subject,
    leaks: Mapping[str, Any] | None = None,
    items: Sequence[Mapping[str, Any]] = (),
    untuned: Sequence[Evaluation] = (),
    counts: Sequence[Mapping[str, Any]] = (),
    frontier: Sequence[FrontierPoint] = (),
    hypotheses: Path | None = None,
) -> ReportPaths:
    """Write the files that the module names to `out`, each whole or not.

    evaluations: of one target language, any number of budgets and seeds; base and SFT once or with every budget.
    stages: the records of stage.json files; `cells` in one says how many cells needed it.
    leaks: what leaks.json holds, where leaks were looked for.
    items: rows of items that were scored, for samples on the page.
    untuned: tuned methods as the first of their tries scores; written to untuned.csv where there are some.
    counts: what counts.json says of CT's blocks.
    frontier: every knob value of every method, on dev and test; written to frontier.csv and gaps.json.
    hypotheses: a file that is answered in place of the claims of claims.py.
    Raises ValueError if checkpoints were not scored on the same items.
    """
    from pipeline.report import choices as chosen_on_dev
    from pipeline.report import (
        claims,
        discards,
        frontier_tables,
        gates,
        hypothesis_answers,
        page,
        paired,
        price,
        results,
        sample_items,
        text_of_budgets,
    )

    out.mkdir(parents=True, exist_ok=True)
    rows = results.gather(evaluations)
    discarded = discards.read(audits)
    chosen = chosen_on_dev.read(choices)
    pairs = paired.across(results.methods_in_order(row.method for row in rows), subject.given)
    if pairs is None:
        shown = claims.claims(evaluations, discarded, chosen, subject.language)
    else:
        evidence = paired.Evidence(evaluations, subject.language)
        shown = claims.Claims([], paired.compare(evidence, pairs, 1 if subject.given else 2))
    data = hypothesis_answers.data(evaluations, frontier, discarded, subject.language)
    if hypotheses is not None:
        regime = next((config.get("regime") for config in subject.configs.values()), None)
        answers = hypothesis_answers.answers(hypotheses, data, regime, subject.regimes)
        shown = claims.Claims(answers, shown.comparisons)
    frontiers = frontier_tables.found(data.frontiers, shown.answers)
    asked_of_base = gates.gates(rows, subject.language)
    if asked_of_base:
        write_json(out / "gates.json", gates.as_json(asked_of_base))
    samples = sample_items.pick(items, evaluations, subject.language)
    recipes = discards.recipe_methods(audits)
    text = text_of_budgets.by_budget(counts, [budget for budget in results.budgets_of(rows) if budget])
    first_tries = results.gather(untuned)
    stated = str(hypotheses.name) if hypotheses is not None else None
    generated = sample_items.pick_generated(evaluations, [subject.language, ENGLISH])
    costs = price.costs(results.unique(evaluations), stages)
    more = (leaks, samples, recipes, first_tries, text, frontiers, stated)
    found = page.Findings(rows, shown, discarded, chosen, stages, subject, *more, generated=generated, costs=costs)
    table = "\n".join([results.terminal_table(rows, subject.language), *gates.in_words(asked_of_base)])
    png = out / "figures" / "curves.png"
    paths = ReportPaths(out / "results.csv", out / "results.md", png, out / "report.html", out / "claims.json", table)
    _write_tables(found, paths, out)
    _draw(found, out / "figures")
    write_atomic(paths.page, page.render(found))
    return paths


def _write_tables(found: Findings, paths: ReportPaths, out: Path) -> None:
    """All files but the page and the figures."""
    from pipeline.report import claims, frontier_tables, page_tables, paper_tables, results

    rows, subject = found.rows, found.subject
    names = {subject.language: subject.language_name, "en": "English"}
    write_atomic(paths.results_csv, results.to_csv(rows))
    write_json(paths.claims, claims.as_json(found.claims.answers))
    write_atomic(paths.results_md, results.to_markdown(rows, subject.language, names))
    write_atomic(out / "results.tex", paper_tables.to_latex(rows, found.claims, subject))
    write_atomic(out / "results-intervals.md", paper_tables.to_markdown(rows, subject))
    if found.frontiers:
        write_atomic(out / "frontier.csv", frontier_tables.to_csv(found.frontiers.frontiers))
        write_json(out / "gaps.json", frontier_tables.to_json(found.frontiers))
    if found.untuned:
        write_atomic(out / "untuned.csv", results.to_csv(found.untuned))
    if found.stages:
        write_atomic(out / "stages.csv", page_tables.stages_csv(found.stages))


def _draw(found: Findings, folder: Path) -> None:
    """Draw the figures: curves (accuracy next to bits), the trade-off, discarded parameters, slack."""
    from pipeline.report import chart_data, figures, page, results

    seen = page.picture(found, FIGURE_WIDTH)

    def spec(name: str, **choice: str | int) -> dict[str, Any]:
        return figures.selected(seen.charts[name], seen.tables, {**seen.state, **choice}, seen.looks)

    overall = [m for m in seen.measures if m.language == found.subject.language][:2]
    if "curves" in seen.charts:
        name = found.subject.language_name
        panels = [(f"{name}: {m.name}", spec("curves", measure=chart_data.measure_id(m))) for m in overall]
        figures.write(figures.beside(panels), folder, "curves")
    titles = {"heat": label(str(seen.state["merge"])), "slack": f"mean accuracy ({seen.state['group']})"}
    for name in ("plane", "heat", "slack"):
        if name in seen.charts:
            figures.write(spec(name) | ({"title": titles[name]} if name in titles else {}), folder, name)
    if "gap" in seen.charts and found.frontiers:
        title = found.frontiers.pairs[str(seen.state["pair"])]
        for budget in found.frontiers.frontiers.budgets:
            at = {"frontier_budget": budget}
            over = [("", spec("frontiers", **at)), (title, spec("gap", **at))]
            figures.write(figures.beside(over, "vconcat"), folder, f"frontiers-{results.budget_name(budget)}")
    if "forest" in seen.charts:
        figures.write(spec("forest"), folder, "forest")
