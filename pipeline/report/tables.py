"""Tables of scores and claims: results.md, results-intervals.md, results.tex, and the table of a terminal. Pure."""

from __future__ import annotations

from typing import Any

from pandas import DataFrame

from pipeline.report.claims import Claims
from pipeline.report.data import (
    OVERALL,
    Measure,
    budgets_of,
    grid,
    languages,
    measures,
    methods_of,
    points,
)
from pipeline.report.formatting import budget_name, labels, signed
from pipeline.report.records import ReportInfo, methods_in_order

SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "\\": "\\textbackslash{}",
}


def results_md(scores: DataFrame, info: ReportInfo) -> str:
    """Return results.md: a table per language, methods as rows, CT budgets as columns; the best of each in bold."""
    budgets, titles = budgets_of(scores), labels(methods_of(scores))
    legend = "CT budgets in tokens; means over seeds; the best value of each column in bold. "
    parts = ["# Results\n", f"{legend}Accuracies are shares; bits per byte: lower is better."]
    for language in languages(scores, info.language):
        parts.append(f"\n## {info.languages.get(language, language)}\n")
        parts.append(f"| measure | method | {' | '.join(map(budget_name, budgets))} |")
        parts.append("|---|---|" + "---:|" * len(budgets))
        for measure in measures(scores, language):
            baselines = ", ".join(f"{name} {value:.3f}" for name, value in measure.baselines.items())
            name = f"{measure.name} ({baselines})" if baselines else measure.name
            for method, cells in grid(points(scores, measure), _in_bold, list(titles), budgets).items():
                if any(cells):
                    parts.append(f"| {name} | {titles[method]} | {' | '.join(cells)} |")
                    name = measure.name
    return "\n".join(parts) + "\n"


def intervals_md(scores: DataFrame, info: ReportInfo) -> str:
    """Return results-intervals.md: the scores of `results_tex` as Markdown, each with its 95% interval."""
    budgets = budgets_of(scores)
    parts = [f"# {info.language_name}, experiment {info.title}\n\nMeans over seeds [95% intervals over items]."]
    for measure in _overall(scores, info):
        of_measure = points(scores, measure)
        lines = [f"| {measure.name} | {' | '.join(map(budget_name, budgets))} |", f"|---|{'---:|' * len(budgets)}"]
        titles = labels(methods_in_order(method for method, _ in of_measure.index))
        cells = grid(of_measure, lambda point: f"{_in_bold(point)} {_interval(point)}", list(titles), budgets)
        lines += [f"| {titles[method]} | {' | '.join(texts)} |" for method, texts in cells.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def results_tex(scores: DataFrame, claims: Claims, info: ReportInfo) -> str:
    r"""Return results.tex: one table per summary measure, and one of the claims; to be \input (needs booktabs)."""
    parts = [f"% {info.language_name}, experiment {info.title}. Needs \\usepackage{{booktabs}}.".replace("\n", " ")]
    parts += [_scores_tex(scores, measure, info) for measure in _overall(scores, info)]
    if any(answer.estimate for answer in claims.answers):
        parts.append(_claims_tex(claims))
    return "\n\n".join(parts) + "\n"


def terminal_table(scores: DataFrame, language: str) -> str:
    """Format methods x budgets for a terminal: mean accuracy in the language, then bits per byte (after a slash).

    If neither was measured: the first two tasks.
    """
    budgets, titles = budgets_of(scores), labels(methods_of(scores))
    every = measures(scores, language)
    shown = [measure for measure in every if measure.name in OVERALL[:2]] or every[:2]  # or error rates alone
    grids = [grid(points(scores, m), lambda point: f"{point.value:.3f}", list(titles), budgets) for m in shown]
    lines = [["", *map(budget_name, budgets)]]
    for method, title in titles.items():
        columns = zip(*(cells[method] for cells in grids), strict=True) if grids else [()] * len(budgets)
        lines.append([title, *(" / ".join(text or "-" for text in texts) if any(texts) else "" for texts in columns)])
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    padded = (
        [line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], rest, strict=True))]
        for line in lines
    )
    title = f"{language}: {' / '.join(measure.name for measure in shown)}, by CT tokens"
    return "\n".join([title, *("  ".join(line).rstrip() for line in padded)])


def _overall(scores: DataFrame, info: ReportInfo) -> list[Measure]:
    return [measure for measure in measures(scores, info.language) if measure.name in OVERALL]


def _in_bold(point: Any) -> str:
    return f"**{point.value:.3f}**" if point.best else f"{point.value:.3f}"


def _interval(point: Any) -> str:
    return f"[{point.low:.3f}, {point.high:.3f}]"


def _scores_tex(scores: DataFrame, measure: Measure, info: ReportInfo) -> str:
    """Return methods as rows, budgets as columns; 95% intervals small below each value, the best in bold."""
    found, budgets = points(scores, measure), budgets_of(scores)
    titles = labels(methods_in_order(method for method, _ in found.index))

    def value(point: Any) -> str:
        return f"\\textbf{{{point.value:.3f}}}" if point.best else f"{point.value:.3f}"

    values = grid(found, value, list(titles), budgets)
    intervals = grid(found, lambda point: f"{{\\scriptsize {_interval(point)}}}", list(titles), budgets)
    lines = [
        line
        for method, title in titles.items()
        for line in (
            f"{escaped(title)} & {' & '.join(values[method])} \\\\",
            f" & {' & '.join(intervals[method])} \\\\[2pt]",
        )
    ]
    seeds = scores.seed.nunique()
    lower = " Lower is better." if measure.lower_is_better else ""
    caption = (
        f"{escaped(info.language_name)}: {measure.name} by tokens of continual pre-training, with 95\\% "
        f"intervals over items; means over {seeds} seed{'s' if seeds != 1 else ''}.{lower}"
    )
    head = f"method & {' & '.join(map(budget_name, budgets))} \\\\"
    return _table_tex(f"l{'r' * len(budgets)}", head, lines, caption, f"tab:{measure.name.replace(' ', '-')}")


def _claims_tex(claims: Claims) -> str:
    lines = []
    for answer in claims.answers:
        if (estimate := answer.estimate) is not None:
            effect, low, high = (
                signed(x).replace("\u2212", "-").replace("\u221e", "\\infty")
                for x in (estimate.value, estimate.low, estimate.high)
            )
            mde = f"{estimate.mde:.3f}".replace("inf", "$\\infty$")
            spread = f"${effect}$ & $[{low}, {high}]$ & {mde}"
            lines.append(f"{escaped(answer.claim.text)} & {spread} & {answer.verdict} \\\\")
    caption = (
        "Claims stated before looking: effect, 95\\% interval over other seeds and other documents, minimum "
        "detectable effect (MDE), and verdict. Supported: by $p$-values adjusted by Holm; intervals and MDE are of "
        "a single claim."
    )
    return _table_tex(
        "p{6cm}rrrl", "claim & effect & 95\\% interval & MDE & verdict \\\\", lines, caption, "tab:claims"
    )


def _table_tex(columns: str, head: str, lines: list[str], caption: str, name: str) -> str:
    body = "\n".join(lines)
    return (
        f"\\begin{{table}}\n\\centering\\small\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n"
        f"\\bottomrule\n\\end{{tabular}}\n\\caption{{{caption}}}\n\\label{{{name}}}\n\\end{{table}}"
    )


def escaped(text: str) -> str:
    """Return text as LaTeX prints it."""
    return "".join(SPECIAL.get(char, char) for char in text)
