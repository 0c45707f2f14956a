"""What lm-eval wrote by itself: which metrics count, in which direction, of which run, and of which model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from common.files import read_jsonl
from pipeline.report import lm_eval_folder, sources

DAY, NEXT_DAY = "2026-11-25T10-00-00.000001", "2026-11-26T10-00-00.000001"
WER = {"metric": "wer", "aggregation": "mean", "higher_is_better": False}
ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report._draw", lambda found, folder: None)
    monkeypatch.setattr("pipeline.report.figures.javascript", lambda: "")


def write_run(
    folder: Path,
    values: Mapping[str, Sequence[Any]],
    metrics: Sequence[Mapping[str, Any]],
    *,
    name: str = "org/model",
    task: str = "speech",
    day: str = DAY,
    directions: Mapping[str, Any] | None = None,
    old: bool = False,
) -> Path:
    """A task of one run as lm-eval writes it into a folder: `values` of each metric, a number an item.

    old: as lm-eval wrote samples before 0.4.7.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"model_name": name, "configs": {task: {"metric_list": list(metrics)}}}
    if directions is not None:
        results["higher_is_better"] = {task: directions}
    (folder / f"results_{day}.json").write_text(json.dumps(results))
    marks = {} if old else {"filter": "none", "metrics": list(values), "doc_hash": ""}
    rows = []
    for n, numbers in enumerate(zip(*values.values(), strict=True)):
        head = {"doc_id": n, "doc": {"text": f"item {n}"}, "target": "a", "arguments": {}, "resps": [["a"]], **marks}
        rows.append(head | ({} if old else {"doc_hash": f"{n:064d}"}) | dict(zip(values, numbers, strict=True)))
    (folder / f"samples_{task}_{day}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def records(folder: Path, out: Path) -> list[dict[str, Any]]:
    (evaluation,) = lm_eval_folder.read(folder, out)
    return [json.loads(line) for line in (evaluation.folder / "scores.jsonl").read_text().splitlines()]


def rates(mean: float) -> list[float]:
    return [mean + 0.01 * (n % 3 - 1) for n in range(30)]


@pytest.mark.parametrize("stated", ["results", "metric list", "name alone"])
def test_a_higher_error_rate_is_worse(tmp_path: Path, stated: str) -> None:
    metric = WER if stated == "metric list" else {"metric": "wer", "aggregation": "mean"}
    directions = {"wer": False} if stated == "results" else None
    given = [
        write_run(tmp_path / name, {"wer": rates(mean)}, [metric], name=name, directions=directions)
        for name, mean in (("good", 0.3), ("bad", 0.8))
    ]
    paths = sources.render_folders(given, tmp_path / "out")
    html = paths.page.read_text()
    assert "bad is worse than good (+0.500 in mean error, 95% CI " in html and "mean accuracy (" not in html
    assert "bad" in paths.table and "0.800" in paths.table
    assert "| speech: wer | good | **0.300** |" in paths.results_md.read_text()
    assert ",acc," not in paths.results_csv.read_text()


@pytest.mark.parametrize("metric", ["perplexity", "ter", "brier_score", "likelihood_diff"])
def test_an_accuracy_beside_an_error_is_what_the_task_is_judged_by(tmp_path: Path, metric: str) -> None:
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": False}, ACC]
    folder = write_run(tmp_path / "one", {metric: rates(1.2), "acc": [1.0, 0.0] * 15}, metrics)
    found = {(row["task"], row["metric"]): row for row in records(folder, tmp_path / "out")}
    assert found["speech", metric]["higher_is_better"] is False and found["speech", metric]["primary"] is False
    assert found["speech", "acc"]["primary"] is True
    assert found["mean_und", "acc"]["value"] == 0.5


LOGLIKELIHOODS = {"perplexity": rates(-2.6), "acc": [1.0, 0.0] * 15}


@pytest.mark.parametrize("aggregation", ["perplexity", "median", "def agg(items):\n    return max(items)\n", None])
def test_an_aggregation_is_that_of_the_run_that_scored_the_task(tmp_path: Path, aggregation: str | None) -> None:
    """Lambada yesterday, another task today: today's results do not state lambada's metrics."""
    metric = {"metric": "perplexity", "higher_is_better": False} | ({"aggregation": aggregation} if aggregation else {})
    folder = write_run(tmp_path / "one", LOGLIKELIHOODS, [metric, ACC], task="lambada")
    write_run(folder, {"acc": [1.0] * 30}, [ACC], day=NEXT_DAY)
    found = {(row["task"], row["metric"]): row["value"] for row in records(folder, tmp_path / "out")}
    assert found == {("lambada", "acc"): 0.5, ("speech", "acc"): 1.0, ("mean_und", "acc"): 0.75}


def test_a_task_scored_twice_is_read_from_the_newest_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", {"acc": [0.0] * 30}, [{**ACC, "aggregation": "median"}])
    write_run(folder, {"acc": [1.0] * 30}, [ACC], day=NEXT_DAY)
    assert [row["value"] for row in records(folder, tmp_path / "out")] == [1.0, 1.0]


def test_a_metric_that_is_a_function_is_known_by_its_name(tmp_path: Path) -> None:
    metric = {**WER, "metric": "def rate(references, predictions):\n    return 1.0\n"}
    folder = write_run(tmp_path / "one", {"rate": rates(1.0)}, [metric])
    assert [row["higher_is_better"] for row in records(folder, tmp_path / "out")] == [False]


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (("/runs/a/checkpoint-500", "/runs/b/checkpoint-500"), ("checkpoint-500 (a)", "checkpoint-500 (b)")),
        (("checkpoint-500", "./checkpoint-500"), ("checkpoint-500 (good)", "checkpoint-500 (bad)")),
    ],
)
def test_models_of_one_name_are_told_apart(tmp_path: Path, models: Sequence[str], names: Sequence[str]) -> None:
    given = [
        write_run(tmp_path / folder, {"acc": values}, [ACC], name=name)
        for folder, name, values in zip(("good", "bad"), models, ([1.0] * 30, [0.0] * 30), strict=True)
    ]
    html = sources.render_folders(given, tmp_path / "out").page.read_text()
    assert f"{names[1]} is worse than {names[0]} (" in html


def test_a_folder_that_is_given_twice_is_a_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", {"acc": [1.0] * 30}, [ACC])
    with pytest.raises(BadInput, match=r"^model: a folder of lm-eval is given twice\. Pass each folder once\.$"):
        sources.render_folders([folder, folder], tmp_path / "out")


@pytest.mark.parametrize("listed", [True, False])
def test_samples_of_old_versions_are_read(tmp_path: Path, listed: bool) -> None:
    """Before 0.4.7 samples had no filter and no list of metrics, and before 0.4.3 no hash of the document."""
    values = {"acc": [1.0, 0.0] * 15}
    old = write_run(tmp_path / "old", values, [ACC] if listed else [], old=True, name="old")
    samples = next(old.glob("samples_*"))
    samples.write_text(samples.read_text() + samples.read_text())  # of a second filter
    assert [row["n"] for row in records(old, tmp_path / "out")] == [30, 30]
    from lm_eval.utils import hash_string

    document = read_jsonl(lm_eval_folder.read(old, tmp_path / "again")[0].folder / "samples.jsonl")[0]["document"]
    assert document == hash_string(json.dumps({"text": "item 0"}, indent=2))


def test_runs_in_folders_of_their_own_are_models_to_compare(tmp_path: Path) -> None:
    for run, values in (("first", [1.0] * 30), ("second", [0.0] * 30)):
        write_run(tmp_path / "all" / run / "org__model", {"acc": values}, [ACC])
    html = sources.render_folders([tmp_path / "all"], tmp_path / "out").page.read_text()
    assert "model (second) is worse than model (first) (" in html


def test_results_may_have_a_name_of_their_own(tmp_path: Path) -> None:
    """`--output_path scores.json` gives scores_<date>.json, beside the samples."""
    folder = write_run(tmp_path / "one", {"acc": [1.0] * 30, "wer": rates(0.5)}, [ACC, WER])
    (folder / f"results_{DAY}.json").rename(folder / f"scores_{DAY}.json")
    assert lm_eval_folder.is_one(folder)
    assert [row.get("higher_is_better") for row in records(folder, tmp_path / "out")] == [None, False, None]
