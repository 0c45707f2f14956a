"""The published files, and the page above all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import report
from pipeline.report import page
from pipeline.report.records import Evaluation
from tests.pipeline.report.synthetic import GOOD, LOST, SUBJECT, Run, write_scores


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, report.ReportPaths]:
    run = Run(tmp_path_factory.mktemp("run"), GOOD, LOST)
    return run, run.render(tmp_path_factory.mktemp("report") / "out")


def test_the_page_is_one_file_that_refers_to_nothing_else(rendered: tuple[Run, report.ReportPaths]) -> None:
    _, paths = rendered
    html = paths.page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(|@import|<script|<link|https?://""", html)
    for wanted in (
        "data:image/svg+xml;base64,",
        "lambda = 1.5",
        "61.5",
        "c0ffeec0ff",
        "+0.300",
        "30.0 %",
        "torch 2.13.0",
        "name: a &lt;b&gt;",
        "(margin 0.02, mdd 0.",
        "which labels were given",
        "<caption>genre_nya, acc_calibrated: answers, summed over seeds</caption>",
    ):
        assert wanted in html, wanted
    assert "A &lt;small&gt; run &amp; more" in html and "<small> run" not in html and "a <b>" not in html
    assert (
        paths.curves.read_bytes().startswith(b"\x89PNG") and b"</svg>" in paths.curves.with_suffix(".svg").read_bytes()
    )
    assert sorted(path.name for path in paths.page.parent.iterdir()) == [
        "claims.json",
        "curves.png",
        "curves.svg",
        "report.html",
        "results.csv",
        "results.md",
    ]


def test_the_same_data_give_the_same_bytes(rendered: tuple[Run, report.ReportPaths], tmp_path: Path) -> None:
    run, first = rendered
    run.render(tmp_path)
    for path in first.page.parent.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_times_are_added_up_by_kind() -> None:
    assert page.by_kind(
        [{"kind": "eval", "seconds": 1.0}, {"kind": "ct", "seconds": 5.0}, {"kind": "eval", "seconds": 2.0}]
    ) == [
        ("ct", 1, 5.0),
        ("eval", 2, 3.0),
    ]


def test_no_torch_is_imported() -> None:
    names = ("", ".page", ".claims", ".curves", ".discards_plot")
    modules = ", ".join(f"pipeline.report{name}" for name in names)
    code = f"import sys, {modules}; assert not {{'torch', 'lm_eval', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_leaks_are_a_section_where_they_were_looked_for(tmp_path: Path) -> None:
    folder = write_scores(tmp_path / "base", {"next": 0.5}, 2.0)
    worst = {
        "task": "next_nya",
        "id": "i<1>",
        "share": 0.5,
        "jaccard": 0.9,
        "text": "an item",
        "training": {"file": "text/a", "document": "d", "text": "a passage"},
    }
    tasks = {"next_nya": {"items": 50, "too_short": 3, "verbatim": 2, "near": 1}}
    read = {"files": 1, "documents": 12_345, "bytes": 10**7}
    leaks = {
        "gram_words": 13,
        "shingle_words": 5,
        "shortest_words": 8,
        "near_jaccard": 0.8,
        "read": read,
        "tasks": tasks,
        "worst": [worst],
    }
    evaluations = [Evaluation("base", 10_000, 0, folder)]
    page = report.render(evaluations, [], [], [], tmp_path / "with", SUBJECT, leaks).page.read_text()
    assert "<tr><th>next_nya</th><td>50</td><td>3</td><td>2</td><td>1</td></tr>" in page
    assert "12,345 documents" in page and "i&lt;1&gt;" in page and "a passage" in page
    assert 'id="leaks"' not in report.render(evaluations, [], [], [], tmp_path / "without", SUBJECT).page.read_text()
