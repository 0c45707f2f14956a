"""LaTeX tables, and the sentence at the page's head."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.report import headline, paper_tables, results
from tests.pipeline.report.synthetic import GOOD, LOST, SUBJECT, Run


def test_tables_for_papers_have_intervals_and_rules(tmp_path: Path) -> None:
    run = Run(tmp_path, GOOD, LOST)
    text = paper_tables.to_latex(results.gather(run.evaluations), run.claims(), SUBJECT)
    assert text.count("\\toprule") == text.count("\\bottomrule") == 4  # three measures and the claims
    assert "TIES SV 1 &  & \\textbf{0.750} & \\textbf{0.650} & \\textbf{0.550} \\\\" in text
    assert "{\\scriptsize [0.7" in text and "method & no CT & 10k & 100k & 1M \\\\" in text
    assert "Merges beat CT-then-SFT where text is scarcest. & $+0.300$ & $[+0.2" in text
    rows = [row for body in re.findall(r"\\midrule\n(.*?)\n\\bottomrule", text, re.DOTALL) for row in body.splitlines()]
    assert len(rows) > len(run.claims().answers) and all(re.search(r"\\\\(\[2pt\])?$", row) for row in rows)
    markdown = paper_tables.to_markdown(results.gather(run.evaluations), SUBJECT)
    assert "| TIES SV 1 |  | **0.750** [0.7" in markdown and "| mean accuracy | no CT | 10k | 100k | 1M |" in markdown
    assert paper_tables.escaped("a_b & 5 %") == "a\\_b \\& 5 \\%"


def test_one_sentence_says_what_was_found(tmp_path: Path) -> None:
    shown = Run(tmp_path / "good", GOOD, LOST).claims().answers
    assert headline.sentence(shown, "Chichewa").startswith(
        "In Chichewa, this run shows that merges beat CT-then-SFT where text is scarcest (+0.300 ["
    )
    told = headline.sentence(shown, "Chichewa")
    assert "and shows that merges find the right answers" in told and told.endswith(
        f"Of {len(shown)} claims: 13 shown."
    )
    one_seed = Run(tmp_path / "one", GOOD, LOST, seeds=(0,)).claims().answers
    told = headline.sentence(one_seed, "Chichewa")
    assert "this run cannot tell whether merges beat CT-then-SFT" in told and told.endswith("13 undecided.")
    nothing = Run(tmp_path / "none", {}, {}).claims().answers
    assert headline.sentence(nothing, "Chichewa") == "In Chichewa, nothing that the claims ask about was run yet."
