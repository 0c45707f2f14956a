"""LaTeX tables, and the sentence at the page's head."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.report import data, summary, tables
from pipeline.report.builtin_claims import STATED
from pipeline.report.claims import Answer, Claim
from pipeline.report.inference import Estimate, Parts, Verdict
from tests.pipeline.report.synthetic import GOOD, INFO, LOST, Run


def test_tables_for_papers_have_intervals_and_rules(tmp_path: Path) -> None:
    run = Run(tmp_path, GOOD, LOST)
    text = tables.results_tex(data.gather(run.evaluations), run.claims(), INFO)
    assert text.count("\\toprule") == text.count("\\bottomrule") == 4  # three measures and the claims
    assert "TIES + slack 1 &  & \\textbf{0.750} & \\textbf{0.650} & \\textbf{0.550} \\\\" in text
    assert "{\\scriptsize [0.7" in text and "method & no CT & 10k & 100k & 1M \\\\" in text
    assert "Merges are more accurate than CT-then-SFT at the smallest CT budget. & $+0.300$ & $[+0.2" in text
    rows = [row for body in re.findall(r"\\midrule\n(.*?)\n\\bottomrule", text, re.DOTALL) for row in body.splitlines()]
    assert len(rows) > len(run.claims().answers) and all(re.search(r"\\\\(\[2pt\])?$", row) for row in rows)
    markdown = tables.intervals_md(data.gather(run.evaluations), INFO)
    assert (
        "| TIES + slack 1 |  | **0.750** [0.7" in markdown and "| mean accuracy | no CT | 10k | 100k | 1M |" in markdown
    )
    assert tables.escaped("a_b & 5 %") == "a\\_b \\& 5 \\%"


def test_a_headline_names_effect_unit_and_interval(tmp_path: Path) -> None:
    shown = Run(tmp_path / "good", GOOD, LOST).claims().answers
    told = summary.sentence(shown, "Chichewa", (0, 10_000, 100_000))
    first = "At 10k tokens, merging is more accurate than CT-then-SFT (+0.300 in accuracy, 95% CI +0.2"
    assert told.startswith(first)
    assert ". At 10k tokens, merging makes the correct answers more likely than CT-then-SFT (+" in told
    assert told.endswith(f" Of {len(shown)} claims: 13 supported.")
    one_seed = Run(tmp_path / "one", GOOD, LOST, seeds=(0,)).claims().answers
    told = summary.sentence(one_seed, "Chichewa")
    assert "It is inconclusive whether merging is more accurate than CT-then-SFT (" in told
    assert told.endswith("Of 13 claims: 13 inconclusive.")
    nothing = Run(tmp_path / "none", {}, {}).claims().answers
    assert summary.sentence(nothing, "Chichewa") == (
        "In Chichewa, no claim has data: the stages that the claims need were not run."
    )


@pytest.mark.parametrize("verdict", summary.VERDICTS)
@pytest.mark.parametrize("claim", [claim for claim, _ in STATED], ids=lambda claim: claim.id)
def test_every_claim_has_a_sentence_for_every_verdict(claim: Claim, verdict: Verdict) -> None:
    estimate = Estimate(value=-0.013, low=-0.035, high=0.01, p=0.2, mde=0.03, n=400, seeds=5, documents=50)
    told = summary.sentence(
        [Answer(claim=claim, verdict=verdict, estimate=estimate, p_adjusted=0.2, text="")],
        "Chichewa",
        (50_000, 450_000),
    )
    found = re.fullmatch(r"([A-Z].*) \((\S+) (.*), 95% CI \u22120.035 to \+0.010\)\. Of 1 claim: 1 (.*)\.", told)
    assert found and found[2] == "\u22120.013" and found[4] == verdict
    assert found[3] == claim.unit and len(found[1].split()) <= 25


def test_clauses_of_a_claim_differ() -> None:
    for clauses in (claim.clauses for claim, _ in STATED):
        assert clauses is not None
        assert len({clauses.supported, clauses.equivalent, clauses.ruled_out, clauses.contradicted}) == 4


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("supported", "With 450k tokens, བོད་སྐད is kept"),
        ("equivalent", "Equivalent, as the effect is within \u00b10.02: \u201cWith 450k tokens, བོད་སྐད is kept\u201d"),
        ("ruled out", "Ruled out, as the effect is below 0.02: \u201cWith 450k tokens, བོད་སྐད is kept\u201d"),
        (
            "contradicted",
            "Contradicted, as the effect has the opposite sign: \u201cWith 450k tokens, བོད་སྐད is kept\u201d",
        ),
        ("inconclusive", "Inconclusive: \u201cWith 450k tokens, བོད་སྐད is kept\u201d"),
    ],
)
def test_a_hypothesis_has_a_sentence_for_every_verdict(verdict: Verdict, words: str) -> None:
    """A reader who stops after the first sentence must not take a rejected statement for a finding."""
    claim = Claim(
        id="h",
        text="With 450k tokens, བོད་སྐད is kept.",
        source="ours",
        statistic="a gap",
        margin=0.02,
        unit="in accuracy",
    )
    estimate = Estimate(value=-0.013, low=-0.035, high=0.01, p=0.2, mde=0.03, n=400, seeds=5, documents=50)
    first, counts = summary.sentences(
        [Answer(claim=claim, verdict=verdict, estimate=estimate, p_adjusted=0.2, text="")], "Tibetan"
    )
    assert first == f"{words} (\u22120.013 in accuracy, 95% CI \u22120.035 to +0.010)."
    assert counts == f"Of 1 claim: 1 {verdict}."
    exploratory = Answer(claim=claim, verdict="exploratory", estimate=estimate, text="")
    _, counts = summary.sentences(
        [Answer(claim=claim, verdict=verdict, estimate=estimate, p_adjusted=0.2, text=""), exploratory], "Tibetan"
    )
    assert counts == f"Of 1 claim: 1 {verdict}. 1 more is exploratory."


def test_a_mean_of_tasks_that_differ_in_sign_is_not_the_headline_alone() -> None:
    claim = Claim(
        id="h", text="CT-then-SFT is more accurate.", source="ours", statistic="a gap", margin=0.02, unit="in accuracy"
    )
    above, below = (
        Estimate(value=value, low=value - 0.02, high=value + 0.02, p=0.2, mde=0.03, n=400, seeds=5, documents=50)
        for value in (0.11, -0.005)
    )
    for second, by_task in (
        (below, " By task: genre +0.110 (95% CI +0.090 to +0.130); next \u22120.005 (95% CI \u22120.025 to +0.015)."),
        (above, ""),
    ):
        parts = Parts("task", (("genre", above), ("next", second)))
        (first, _) = summary.sentences(
            [Answer(claim=claim, verdict="supported", estimate=above, p_adjusted=0.01, text="", parts=parts)],
            "Chichewa",
        )
        assert first == f"CT-then-SFT is more accurate (+0.110 in accuracy, 95% CI +0.090 to +0.130).{by_task}"
