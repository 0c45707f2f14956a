"""Results -> tables, curves, claims, one HTML page.

Comes in: folders of a run, by `Evaluation` (scores.jsonl, samples.jsonl), `Audit` (audit.json) and `Choice`
(choice.yml, tries.jsonl), and the records of stage.json files; nothing of the store or of a config is asked.
Goes out: results.csv, results.md, claims.json (a claim a row), gates.json (a gate a row, where a ceiling was scored),
curves.png, curves.svg and report.html, each whole or not at all; the same input gives the same bytes. The table for a
terminal comes back as text.
May be touched: the output folder of `render`.

No torch is imported for it, and nothing is drawn before `render`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_json, write_whole
from pipeline.report.records import Audit, Choice, Evaluation, ReportPaths, Subject

__all__ = ["Audit", "Choice", "Evaluation", "ReportPaths", "Subject", "render", "write_untuned"]


def render(
    evaluations: Sequence[Evaluation],
    audits: Sequence[Audit],
    choices: Sequence[Choice],
    stages: Sequence[Mapping[str, Any]],
    out: Path,
    subject: Subject,
    leaks: Mapping[str, Any] | None = None,
) -> ReportPaths:
    """Writes results.csv, results.md, claims.json, curves.png, curves.svg and report.html to `out`, each whole or not.

    evaluations: of one target language, any number of budgets and seeds; base and SFT once or with every budget.
    stages: the records of stage.json files, for the list of what was run.
    leaks: what leaks.json holds, where leaks were looked for.
    Raises ValueError where checkpoints were not scored on the same items.
    """
    from pipeline.report import choices as chosen_on_dev
    from pipeline.report import claims, curves, discards, discards_plot, gates, page, results, style

    out.mkdir(parents=True, exist_ok=True)
    rows = results.gather(evaluations)
    names = {subject.language: subject.language_name, "en": "English"}
    discarded = discards.read(audits)
    chosen = chosen_on_dev.read(choices)
    shown = claims.claims(evaluations, discarded, chosen, subject.language)
    png = curves.write(rows, subject.language, names, out)
    asked_of_base = gates.gates(rows, subject.language)
    if asked_of_base:
        write_json(out / "gates.json", gates.as_json(asked_of_base))
    table = "\n".join([results.terminal_table(rows, subject.language), *gates.in_words(asked_of_base)])
    paths = ReportPaths(out / "results.csv", out / "results.md", png, out / "report.html", out / "claims.json", table)
    write_whole(paths.results_csv, results.to_csv(rows))
    write_json(paths.claims, claims.as_json(shown.answers))
    write_whole(paths.results_md, results.to_markdown(rows, subject.language, names))
    with tempfile.TemporaryDirectory() as aside:
        figure = None
        if discarded:
            looks = style.looks(row.method for row in rows)
            figure = discards_plot.write(discarded, looks, Path(aside) / "discards.svg")
        html = page.render(rows, shown, discarded, chosen, stages, subject, out / "curves.svg", figure, leaks)
    write_whole(paths.page, html)
    return paths


def write_untuned(evaluations: Sequence[Evaluation], out: Path) -> None:
    """Writes untuned.csv, of the columns of results.csv: tuned methods as the first of their tries scores on test."""
    from pipeline.report import results

    write_whole(out / "untuned.csv", results.to_csv(results.gather(evaluations)))
