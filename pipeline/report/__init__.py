"""Results -> tables, figures, claims, one HTML page.

Comes in: folders of a run, by `Evaluation` (scores.jsonl, samples.jsonl), `Audit` (audit.json) and `Choice`
(choice.yml, tries.jsonl), and the records of stage.json files; no store and no config is read.
Goes out: results.csv, results.md; with intervals results-intervals.md and results.tex; claims.json (a row per claim),
gates.json (a row per gate, if target_sft was scored), frontier.csv and gaps.json (if every knob value was scored),
task_vectors.csv (if CT and SFT were merged), stages.csv, figures/ (SVG, PDF, PNG) and report.html, each complete or
not at all; the same input gives the same bytes (except PDFs). The table for a terminal comes back as text.
May be touched: the output folder of `render`.

Read in this order:

    records     the inputs by their folders; sources: their list next to a report; lm_eval_folder: what lm-eval wrote
    data        scores as a data frame; merges: audits and selections; stages: stage records
    paired      differences on the same items (inference: intervals and p-values; frontier: gaps at equal bits)
    claims      the built-in claims; hypotheses, hypothesis_answers: those of an experiment; gaps, summary: in words
    analysis    all of these for one report
    charts/     tables and Vega-Lite of each chart; figures: charts as files; tables: results as text
    view        what the page shows; page: the page as one file; web/: its template, style and script
    adapt       the report of experiment=adapt, with adapt_claims and adapt_page; regime_map: when merging wins

No torch is imported for it, and pandas only where a report is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.records import ReportPaths

if TYPE_CHECKING:
    from pipeline.report.analysis import Analysis, Inputs

FIGURE_WIDTH = 440  # pixels of a figure's drawing area; a page draws as wide as its place


def render(inputs: Inputs, out: Path) -> ReportPaths:
    """Write the files that the package names to `out`, each complete or not at all.

    Raises ValueError if checkpoints were not scored on the same items.
    """
    from common.files import write_atomic
    from pipeline.report import page, tables, view
    from pipeline.report.analysis import analyse

    out.mkdir(parents=True, exist_ok=True)
    analysis = analyse(inputs)
    paths = ReportPaths(
        results_csv=out / "results.csv",
        results_md=out / "results.md",
        curves=out / "figures" / "curves.png",
        page=out / "report.html",
        claims=out / "claims.json",
        table="\n".join([tables.terminal_table(analysis.scores, analysis.info.language), *map(str, analysis.gates)]),
    )
    _write_tables(analysis, paths, out)
    _draw(analysis, out / "figures")
    write_atomic(paths.page, page.render(view.TEMPLATE, view.page_view(analysis)))
    return paths


def _write_tables(analysis: Analysis, paths: ReportPaths, out: Path) -> None:
    """Write all files except the page and the figures."""
    from common.files import write_atomic, write_json
    from pipeline.report import claims, data, gaps, merges, tables

    write_atomic(paths.results_csv, data.to_csv(analysis.scores))
    write_json(paths.claims, claims.as_json(analysis.claims.answers))
    write_atomic(paths.results_md, tables.results_md(analysis.scores, analysis.info))
    write_atomic(out / "results.tex", tables.results_tex(analysis.scores, analysis.claims, analysis.info))
    write_atomic(out / "results-intervals.md", tables.intervals_md(analysis.scores, analysis.info))
    if analysis.gates:
        write_json(out / "gates.json", [gate.as_json() for gate in analysis.gates])
    if analysis.gaps:
        write_atomic(out / "frontier.csv", data.csv_text(data.frame(gaps.COLUMNS, analysis.gaps.csv_rows())))
        write_json(out / "gaps.json", analysis.gaps.as_json())
    if analysis.task_vectors:
        write_atomic(out / "task_vectors.csv", data.csv_text(merges.task_vectors_table(analysis.task_vectors)))
    if not analysis.untuned.empty:
        write_atomic(out / "untuned.csv", data.to_csv(analysis.untuned))
    if analysis.stages:
        write_atomic(out / "stages.csv", analysis.stages.to_csv())


def _draw(analysis: Analysis, folder: Path) -> None:
    """Draw the figures: curves (accuracy next to bits), trade-off, discarded parameters, slack, frontiers, search."""
    from pipeline.report import figures, view
    from pipeline.report.formatting import budget_name, label
    from pipeline.report.gaps import pair_name

    seen = view.picture(analysis, FIGURE_WIDTH)

    def spec(name: str, **choice: str | int) -> dict[str, Any]:
        return figures.selected(seen.charts[name], {**seen.state, **choice}, seen.styles)

    if "curves" in seen.charts:
        overall = [measure for measure in seen.measures if measure.language == analysis.info.language][:2]
        name = analysis.info.language_name
        panels = [(f"{name}: {measure.name}", spec("curves", measure=measure.id)) for measure in overall]
        figures.write(figures.beside(panels), folder, "curves")
    titles = {"heat": label(str(seen.state["merge"])), "slack": f"mean accuracy ({seen.state['group']})"}
    for chart, name in (("tradeoff", "plane"), ("heat", "heat"), ("slack", "slack")):
        if chart in seen.charts:
            figures.write(spec(chart) | ({"title": titles[chart]} if chart in titles else {}), folder, name)
    if "frontiers" in seen.charts and analysis.gaps:
        pair, gaps = seen.state["pair"], analysis.gaps
        drawn = {gap.ct_tokens for gap in gaps.gaps if gap.estimate and pair_name(gap) == pair}
        for budget in gaps.frontiers.budgets:
            over = [("", spec("frontiers", frontier_budget=budget))]
            if budget in drawn:
                over.append((gaps.pairs[str(pair)], spec("gap", frontier_budget=budget)))
            figures.write(figures.beside(over, "vconcat"), folder, f"frontiers-{budget_name(budget)}")
    for chart in ("forest", "search"):
        if chart in seen.charts:
            figures.write(spec(chart), folder, chart)
