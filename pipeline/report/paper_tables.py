"""Tables for papers, with intervals: LaTeX with booktabs and Markdown, from the same records as everything else."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.claims import Claims
from pipeline.report.records import Row, Subject, labels
from pipeline.report.results import OVERALL, Measure, best, budget_name, budgets_of, measures, methods_in_order, points
from pipeline.report.wording import signed

SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "\\": "\\textbackslash{}",
}


def to_latex(rows: Sequence[Row], claims: Claims, subject: Subject) -> str:
    r"""Return results.tex: one table per summary measure, and one of the claims; to be \input (needs booktabs)."""
    parts = [
        f"% {subject.language_name}, experiment {subject.title}. Needs \\usepackage{{booktabs}}.".replace("\n", " ")
    ]
    for measure in measures(rows, subject.language):
        if measure.name in OVERALL:
            parts.append(_scores(rows, measure, subject))
    if any(answer.estimate for answer in claims.answers):
        parts.append(_claims(claims))
    return "\n\n".join(parts) + "\n"


def to_markdown(rows: Sequence[Row], subject: Subject) -> str:
    """results-intervals.md: the scores of `to_latex` as Markdown, each with its 95% interval."""
    budgets = budgets_of(rows)
    parts = [f"# {subject.language_name}, experiment {subject.title}\n\nMeans over seeds [95% intervals over items]."]
    for measure in (each for each in measures(rows, subject.language) if each.name in OVERALL):
        scores = points(rows, measure)
        bold = best(scores, measure)
        head = f"| {measure.name} | {' | '.join(map(budget_name, budgets))} |\n|---|{'---:|' * len(budgets)}"
        lines = []
        titles = labels(methods_in_order(method for method, _ in scores))
        for method in titles:
            cells = []
            for budget in budgets:
                mark = "**" if (method, budget) in bold else ""
                point = scores.get((method, budget))
                cells.append(f"{mark}{point.value:.3f}{mark} [{point.low:.3f}, {point.high:.3f}]" if point else "")
            lines.append(f"| {titles[method]} | {' | '.join(cells)} |")
        parts.append("\n".join([head, *lines]))
    return "\n\n".join(parts) + "\n"


def _scores(rows: Sequence[Row], measure: Measure, subject: Subject) -> str:
    """Return methods as rows, budgets as columns; 95% intervals small below each value, the best of a column in
    bold.
    """
    scores, budgets = points(rows, measure), budgets_of(rows)
    bold = best(scores, measure)
    lines = []
    titles = labels(methods_in_order(method for method, _ in scores))
    for method in titles:
        values, intervals = [], []
        for budget in budgets:
            point = scores.get((method, budget))
            value = "" if point is None else f"{point.value:.3f}"
            values.append(f"\\textbf{{{value}}}" if (method, budget) in bold else value)
            intervals.append("" if point is None else f"{{\\scriptsize [{point.low:.3f}, {point.high:.3f}]}}")
        lines += [f"{escaped(titles[method])} & {' & '.join(values)} \\\\", f" & {' & '.join(intervals)} \\\\[2pt]"]
    seeds = len({row.seed for row in rows})
    lower = " Lower is better." if measure.lower_is_better else ""
    caption = (
        f"{escaped(subject.language_name)}: {measure.name} by tokens of continual pre-training, with 95\\% "
        f"intervals over items; means over {seeds} seed{'s' if seeds != 1 else ''}.{lower}"
    )
    head = f"method & {' & '.join(budget_name(budget) for budget in budgets)} \\\\"
    return _table(f"l{'r' * len(budgets)}", head, lines, caption, f"tab:{measure.name.replace(' ', '-')}")


def _claims(claims: Claims) -> str:
    lines = []
    for answer in claims.answers:
        if (estimate := answer.estimate) is not None:
            effect, low, high = [
                signed(x).replace("\u2212", "-").replace("\u221e", "\\infty")
                for x in (estimate.value, estimate.low, estimate.high)
            ]
            mde = f"{estimate.mde:.3f}".replace("inf", "$\\infty$")
            spread = f"${effect}$ & $[{low}, {high}]$ & {mde}"
            lines.append(f"{escaped(answer.claim.text)} & {spread} & {answer.verdict} \\\\")
    caption = (
        "Claims stated before looking: effect, 95\\% interval over other seeds and other documents, minimum "
        "detectable effect (MDE), and verdict. Supported: by $p$-values adjusted by Holm; intervals and MDE are of "
        "a single claim."
    )
    return _table("p{6cm}rrrl", "claim & effect & 95\\% interval & MDE & verdict \\\\", lines, caption, "tab:claims")


def _table(columns: str, head: str, lines: Sequence[str], caption: str, name: str) -> str:
    body = "\n".join(lines)
    return (
        f"\\begin{{table}}\n\\centering\\small\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n"
        f"\\bottomrule\n\\end{{tabular}}\n\\caption{{{caption}}}\n\\label{{{name}}}\n\\end{{table}}"
    )


def escaped(text: str) -> str:
    """Return text as LaTeX prints it."""
    return "".join(SPECIAL.get(char, char) for char in text)
