"""Reports of folders: one of ours again, two beside each other, and what lm-eval wrote by itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BadInput
from common.files import read_jsonl
from pipeline.cli import pipeline_main as main
from pipeline.report import lm_eval_folder, sources
from pipeline.report.sources import Sources
from tests.pipeline.report.synthetic import GOOD, INFO, LOST, Run


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures and the page's script are tested elsewhere, and take seconds."""
    monkeypatch.setattr("pipeline.report._draw", lambda found, folder: None)
    monkeypatch.setattr("pipeline.report.figures.javascript", lambda: "")


def experiment(root: Path, title: str, gains: dict[str, tuple[float, ...]]) -> Path:
    run = Run(root / f"{title}-run", gains, LOST)
    info = replace(INFO, title=title, configs={})
    Sources(info=info, evaluations=run.evaluations, audits=run.audits, choices=run.choices).render(root / title)
    return root / title


def test_a_report_is_drawn_again_from_what_lies_beside_it(tmp_path: Path) -> None:
    first = experiment(tmp_path, "one", GOOD)
    before = {path.name: path.read_bytes() for path in first.glob("*.*")}
    again = sources.render_folders([first], tmp_path / "again")
    assert {path.name for path in again.page.parent.glob("*.*")} == set(before)
    assert again.claims.read_bytes() == before["claims.json"]


def test_two_experiments_are_compared_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = {**GOOD, "ties": (-0.3, -0.3, -0.3)}
    paths = [experiment(tmp_path, "one", GOOD), experiment(tmp_path, "two", worse)]
    assert main(["report", *map(str, paths), f"out={tmp_path / 'both'}"]) == 0
    html = (tmp_path / "both" / "report.html").read_text()
    assert "TIES (two) is worse than TIES (one)" in html and "TIES (two)" in capsys.readouterr().out


def test_a_metric_that_is_no_mean_over_items_is_left_out(tmp_path: Path) -> None:
    """lambada's perplexity comes first, and each of its items has a log-likelihood."""
    folder = lm_eval_output(tmp_path, "one", 30)
    results = next(folder.rglob("results_*.json"))
    metrics = [{"metric": "acc", "aggregation": "perplexity"}, {"metric": "acc_norm", "aggregation": "mean"}]
    results.write_text(json.dumps({"model_name": "one", "configs": {"belebele_tel_Telu": {"metric_list": metrics}}}))
    (evaluation,) = lm_eval_folder.read(folder, tmp_path / "out")
    rows = read_jsonl(evaluation.folder / "scores.jsonl")
    assert {row["metric"] for row in rows if row["task"] == "belebele_tel_Telu"} == {"acc_norm"}


def lm_eval_output(root: Path, model: str, right: int) -> Path:
    """A folder as `lm_eval --output_path --log_samples` writes it; `right` of 40 items."""
    folder = root / model / f"org__{model}"
    folder.mkdir(parents=True)
    stamp = "2026-11-25T10-00-00.000001"
    (folder / f"results_{stamp}.json").write_text(json.dumps({"model_name": f"org/{model}", "results": {}}))
    rows = [
        {
            "doc_id": n,
            "doc_hash": f"{n:064d}",
            "target": "1",
            "filter": "none",
            "metrics": ["acc", "acc_norm"],
            "resps": [["-1"], ["-2"]],
            "acc": float(n < right),
            "acc_norm": float(n < right - 1),
        }
        for n in range(40)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"samples_belebele_tel_Telu_{stamp}.jsonl").write_text(lines)
    return root / model


def test_folders_of_lm_eval_are_compared_item_by_item(tmp_path: Path) -> None:
    given = [lm_eval_output(tmp_path, model, right) for model, right in (("small", 10), ("large", 34))]
    paths = sources.render_folders(given, tmp_path / "out")
    html = paths.page.read_text()
    assert "large is better than small (+0.600 in accuracy, 95% CI " in html
    rows = paths.results_csv.read_text().splitlines()
    assert any(row.startswith("und,belebele_tel_Telu,acc,large,0,0,0.85,") and ",40,0.5," in row for row in rows)


@pytest.mark.parametrize("trouble", ["nothing", "no samples", "other items", "moved", "both sorts"])
def test_what_cannot_be_read_is_refused_in_a_line(tmp_path: Path, trouble: str) -> None:
    given = [lm_eval_output(tmp_path, "small", 10), lm_eval_output(tmp_path, "large", 30)]
    samples = next(given[1].rglob("samples_*"))
    if trouble == "nothing":
        given, said = [tmp_path / "nowhere"], "sources.json cannot be read"
    elif trouble == "no samples":
        samples.unlink()
        said = "--log_samples"
    elif trouble == "other items":
        samples.write_text(samples.read_text().replace('"doc_hash": "0', '"doc_hash": "1'))
        said = f"{given[0]}, {given[1]}: their scored items differ"
    elif trouble == "moved":
        given, said = [experiment(tmp_path, "one", GOOD)], "is missing"
        (tmp_path / "one-run").rename(tmp_path / "elsewhere")
    else:
        given.append(experiment(tmp_path, "one", GOOD))
        said = "cannot compare lm-eval folders"
    with pytest.raises(BadInput, match=said):
        sources.render_folders(given, tmp_path / "out")


RESULTS, SAMPLES = "results_*.json", "samples_*.jsonl"


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (RESULTS, None, "[1]", "json: must be an object"),
        (RESULTS, None, "[" * 100_000, "json: not JSON"),
        (RESULTS, "org/small", "\\ud800", "json: not JSON"),
        (RESULTS, "org/small", "a\\u0000b", "the name of a model or task must"),
        (SAMPLES, None, "", "jsonl: is empty"),
        (SAMPLES, None, "[1]\n", "jsonl line 1: must be an object"),
        (SAMPLES, None, '{"doc_id": 1', "jsonl line 1: not JSON"),
        (SAMPLES, '"doc_id"', '"doc_no"', "jsonl line 1: doc_id: "),
        (SAMPLES, '[["-1"], ["-2"]]', "5", "jsonl line 1: resps: "),
        (SAMPLES, '["acc"]', "5", "jsonl line 1: metrics: "),
        (
            SAMPLES,
            '"acc": 0.0',
            '"acc": NaN',
            "no metric of belebele_tel_Telu is a mean over items, got acc",
        ),
        (SAMPLES, '["acc"]', '["bits_per_byte"], "bits_per_byte": [-1.0, 0]', "must be a log-likelihood and"),
    ],
)
def test_what_lm_eval_did_not_write_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, old: str | None, new: str, said: str
) -> None:
    given = lm_eval_output(tmp_path, "small", 10)
    path = next(given.rglob(file))
    path.write_text(new if old is None else path.read_text().replace(', "acc_norm"]', "]").replace(old, new))
    assert main(["report", str(given), f"out={tmp_path / 'out'}"]) == 2
    line = capsys.readouterr().err.strip()
    assert len(line.splitlines()) == 1 and re.search(said, line), line


def test_a_model_may_have_a_long_name(tmp_path: Path) -> None:
    given = lm_eval_output(tmp_path, "small", 10)
    path = next(given.rglob(RESULTS))
    path.write_text(path.read_text().replace("org/small", "n" * 300))
    assert "n" * 300 in sources.render_folders([given], tmp_path / "out").page.read_text()


def test_places_are_kept_relative_to_the_report(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "here", "one", GOOD)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = sources.read(tmp_path / "there" / folder.name)
    assert moved.info.title == "one" and moved.evaluations[0].folder.is_relative_to(tmp_path / "there")
