"""The published files, and the page above all."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import report
from pipeline.report import claims, data, merges, page, view
from pipeline.report.analysis import Analysis, Inputs
from pipeline.report.records import Evaluation, ReportPaths
from pipeline.report.stages import StageRecords
from tests.pipeline.report.synthetic import GOOD, INFO, LOST, Run, write_scores
from tests.plain_words import NEVER


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ReportPaths]:
    run = Run(tmp_path_factory.mktemp("run"), GOOD, LOST)
    return run, run.render(tmp_path_factory.mktemp("report") / "out")


def test_the_page_is_one_file_that_refers_to_nothing_else(rendered: tuple[Run, ReportPaths]) -> None:
    _, paths = rendered
    html = paths.page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(|@import|<script [^>]*src|<link""", html)
    for wanted in (
        "lambda = 1.5",
        "c0ffeec0ff",
        "+0.300",
        "torch 2.13.0",
        "name: a &lt;b&gt;",
        "At 10k tokens, merging is more accurate than CT-then-SFT (+0.300 in accuracy, 95% CI +0.",
    ):
        assert wanted in html, wanted
    assert "A &lt;small&gt; run &amp; more" in html and "<small> run" not in html and "a <b>" not in html
    folder = paths.page.parent
    assert paths.curves.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in paths.curves.with_suffix(".svg").read_text()
    assert paths.curves.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "claims.json",
        *(f"figures/{name}.{kind}" for name in ("curves", "heat", "plane", "slack") for kind in ("pdf", "png", "svg")),
        "report.html",
        "results-intervals.md",
        "results.csv",
        "results.md",
        "results.tex",
        "stages.csv",
    ]


def test_a_reader_finds_terms_units_and_verdicts(rendered: tuple[Run, ReportPaths]) -> None:
    run, paths = rendered
    html = paths.page.read_text()
    wanted = (
        "the base model reads 10k, 100k or 1M tokens (pieces of words) of Chichewa text.",
        '<p class="question">Is it enough to combine two trained models (a merge), ',
        "<dt>merge</dt><dd>The CT model and the SFT model are combined without more training: ",
        "400 Chichewa test items in 2 tasks (blank and genre) that a model answers correctly. Guessing gives 0.250.",
        "<dt>CT budgets</dt><dd>10k, 100k, 1M tokens</dd>",
        "<dt>2 seeds</dt><dd>0, 1</dd>",
    )
    assert [text for text in wanted if text not in html] == []
    effects = re.findall(r'data-name="effect">\S+ <small>([^<]+)</small>', html)
    assert len(effects) == len(run.claims().answers)
    assert {"in accuracy", "bits per byte of text saved", "as a share of SFT&#39;s top 5% of parameters"} < set(effects)
    names = re.findall(r'<th scope="row" class="text">(\d+)\. ', html)
    assert names == [str(number) for number in range(1, 14)]


def test_the_page_has_none_of_the_words_that_we_do_not_use(rendered: tuple[Run, ReportPaths]) -> None:
    text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", rendered[1].page.read_text(), flags=re.DOTALL)
    script = (page.WEB / "page.js").read_text()
    words = re.compile(rf"\b({'|'.join(NEVER)}|tries|cells?|likelier)\b", re.IGNORECASE)
    said = [*re.findall(r"`[^`]*`", script), text]
    found = [match[0] for each in said for match in words.finditer(re.sub(r"\$\{.*?\}", " ", each))]
    assert found == []


def test_the_same_data_give_the_same_bytes(rendered: tuple[Run, ReportPaths], tmp_path: Path) -> None:
    run, first = rendered
    run.render(tmp_path)
    folder = first.page.parent
    for path in (path for path in folder.rglob("*.*") if path.suffix != ".pdf"):  # PDFs draw the same, in other bytes
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path.name


def test_a_page_of_sixty_methods_and_five_seeds_stays_below_its_size(tmp_path: Path) -> None:
    gains = {
        f"{method}_{number}": (0.2, 0.1, 0.0)
        for number in range(15)
        for method in ("linear", "ties", "della", "dare_ties")
    }
    run = Run(tmp_path / "run", gains, {name: (0.1, 0.2, 0.3) for name in list(gains)[:6]}, seeds=(0, 1, 2, 3, 4))
    found = Analysis(
        info=INFO,
        scores=data.gather(run.evaluations),
        claims=claims.Claims([], []),
        discarded=merges.read_audits(run.audits),
        stages=StageRecords(run.stages),
    )
    html = page.render(view.TEMPLATE, view.page_view(found))
    assert len(html.encode()) < 1.5e6
    state = view.picture(found).state
    assert state["methods"] == ["base", "sft", "ct", "ct_then_sft", "linear_0", "ties_0", "della_0", "dare_ties_0"]


def test_an_unfinished_run_says_so(rendered: tuple[Run, ReportPaths]) -> None:
    run, paths = rendered
    assert "Unfinished" not in paths.page.read_text()
    found = replace(run.analysis(), info=replace(INFO, unfinished=(3, 9)))
    assert "3 of 9 stages are done" in page.render(view.TEMPLATE, view.page_view(found))


def test_notes_of_the_config_stand_under_the_headline(rendered: tuple[Run, ReportPaths], tmp_path: Path) -> None:
    run, without = rendered
    assert 'class="note"' not in without.page.read_text()
    cells = {f"seed {seed}": {"notes": ["One <choice> is in doubt.", "A run decides."]} for seed in (0, 1)}
    html = run.render(tmp_path, info=replace(INFO, configs=cells)).page.read_text()
    found, note = html.index('<p class="found">'), html.index('<p class="note">')
    assert found < note < html.index("<dl>")
    assert html.count('<p class="note">One &lt;choice&gt; is in doubt. A run decides.</p>') == 1


def test_what_was_not_tuned_and_what_the_budgets_read_stand_on_the_page(
    rendered: tuple[Run, ReportPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = rendered
    monkeypatch.setattr("pipeline.report._draw", lambda found, folder: None)
    config = {"sft": {"grid": {"learning_rate": [2e-4, 5e-4], "tokens": [64_000]}}}
    counts = {"tokens": 1_000_000, "blocks": 1000, "english_share": 0.2, "text_tokens": {"nya": 60_000, "en": 10**6}}
    info = replace(INFO, configs={"nya 10k seed 0": config})
    paths = run.render(tmp_path, info=info, untuned=run.untuned, counts=[counts])
    html, before = paths.page.read_text(), plain.page.read_text()
    wanted = (
        'id="untuned-table"',
        "CT-then-SFT was trained with the SFT settings that were best on dev (learning_rate of 0.0002, 0.0005, tokens",
        "of 64000); SFT and what is merged of them with the settings stated in the config.",
        "<td>8,000<small>of 8,000</small></td>",
        "<td>60,000<small>of 800,000, 13.3 times each</small></td>",
    )
    assert [text for text in wanted if text not in html] == []
    assert not any(text in before for text in wanted)
    with (tmp_path / "untuned.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {choice.method for choice in run.choices}
    assert not (plain.page.parent / "untuned.csv").exists()


def test_no_torch_is_imported() -> None:
    modules = ", ".join(f"pipeline.report{name}" for name in ("", ".page", ".claims", ".figures"))
    code = f"import sys, {modules}; assert not {{'torch', 'lm_eval', 'vl_convert'}} & set(sys.modules)"
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
    given = Inputs(info=INFO, evaluations=evaluations, contamination=leaks)
    html = report.render(given, tmp_path / "with").page.read_text()
    assert "<tr><th>next_nya</th><td>50</td><td>3</td><td>2</td><td>1</td></tr>" in html
    assert "12,345 documents" in html and "i&lt;1&gt;" in html and "a passage" in html
    assert (
        'id="contamination"'
        not in report.render(replace(given, contamination=None), tmp_path / "without").page.read_text()
    )
