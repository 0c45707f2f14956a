"""Metrics of generated text: values of lm-eval, intervals over documents, packages that are missing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api import metrics as lm_metrics

from common.errors import BadInput
from eval import harness, metrics, task_set
from eval.records import full_metric_name
from eval.task_set import ScoredTask
from tests.eval import local_tasks
from tests.eval.chat_models import chat_model, chat_tokenizer

SYLLABLES = ("நீ", "ர்", "ஆ", "று", "ம", "லை", " ", " ", "வி", "டு", "བོད་", "ཡིག་")
SACREBLEU = (lm_metrics.bleu, lm_metrics.chrf, lm_metrics.chrfpp, lm_metrics.ter)


def translations(count: int, references: int = 0) -> list[tuple[Any, str]]:
    """(reference or references, generated) of documents, generated texts being references with errors."""
    draw = random.Random(3)
    items: list[tuple[Any, str]] = []
    for _ in range(count):
        words = ["".join(draw.choices(SYLLABLES, k=4)) for _ in range(draw.randint(3, 12))]
        said = [word if draw.random() < 0.7 else draw.choice(words) for word in words]
        several = [" ".join(words), *(" ".join(draw.sample(words, len(words))) for _ in range(references - 1))]
        items.append((several if references else several[0], " ".join(said)))
    return [*items[:-1], (items[-1][0], "")]


@pytest.mark.parametrize("references", [0, 3])
@pytest.mark.parametrize("aggregate", SACREBLEU, ids=lambda function: function.__name__)
def test_sums_of_counts_are_lm_evals_value(aggregate: Any, references: int) -> None:
    items = translations(30, references)
    counts = metrics.sentence_counts(aggregate, items)
    assert counts is not None and len(counts) == 30
    assert metrics.scorer_of_aggregate(aggregate)(counts.sum(axis=0)) == pytest.approx(aggregate(items), rel=1e-12)
    alone = metrics.sentence_scores(aggregate, counts)
    assert alone[:3] == pytest.approx([aggregate([item]) for item in items[:3]], rel=1e-12)


@pytest.mark.parametrize("aggregate", SACREBLEU, ids=lambda function: function.__name__)
def test_an_interval_is_that_of_drawing_documents(aggregate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws, computed by lm-eval's own function on each."""
    monkeypatch.setattr(metrics, "RESAMPLES", 40)
    items = translations(25)
    draws = np.random.default_rng(0).integers(25, size=(40, 25))
    redrawn = [aggregate([items[place] for place in draw]) for draw in draws]
    expected = np.percentile(redrawn, [2.5, 97.5])
    assert metrics.aggregate_interval(aggregate, items, aggregate(items)) == pytest.approx(tuple(expected), rel=1e-9)
    assert expected[0] < aggregate(items) < expected[1]


def test_other_aggregates_are_computed_on_each_draw() -> None:
    calls: list[int] = []

    def longest(items: Any) -> float:
        calls.append(len(items))
        return float(max(items))

    low, high = metrics.aggregate_interval(longest, list(range(50)), 49.0)
    assert calls == [50] * metrics.RECOMPUTED_RESAMPLES and 40 < low <= high == 49


def test_settings_of_the_aggregate_that_differ_are_noticed() -> None:
    """A value that the counts do not add up to is drawn by the function itself."""
    items = translations(6)
    own = metrics.aggregate_interval(lm_metrics.chrf, items, lm_metrics.chrf(items))
    assert metrics.aggregate_interval(lm_metrics.chrf, items, 1.0) == pytest.approx(own, abs=15)
    assert metrics.aggregate_interval(lm_metrics.chrf, items, 1.0) != own


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[harness.Scores, dict[str, ScoredTask]]:
    tokenizer = chat_tokenizer()
    own = local_tasks.write(tmp_path_factory.mktemp("own"), ["mgsm_tam", "flores_tam"])
    tasks = task_set.prepare(include_path=own, limit=2)
    return harness.evaluate(chat_model(tokenizer), tokenizer, tasks), tasks.entries


def test_each_filter_has_a_record_and_the_first_is_primary(
    scored: tuple[harness.Scores, dict[str, ScoredTask]],
) -> None:
    rows = [(row["metric"], row["primary"]) for row in scored[0].records if row["task"] == "mgsm_tam"]
    assert rows == [("exact_match,strict-match", True), ("exact_match,flexible-extract", False)]
    assert full_metric_name("exact_match", "none") == "exact_match"


def test_a_metric_of_the_corpus_is_no_part_of_mean_accuracy(
    scored: tuple[harness.Scores, dict[str, ScoredTask]],
) -> None:
    records = scored[0].records
    chrf = next(row for row in records if row["metric"] == "chrf")
    assert chrf["primary"] and chrf["aggregate"] is True
    mean = next(row for row in records if row["family"] == "mean")
    assert (mean["n"], mean["value"]) == (2, next(r for r in records if r["task"] == "mgsm_tam")["value"])


def test_samples_have_question_and_answer(scored: tuple[harness.Scores, dict[str, ScoredTask]]) -> None:
    sums = [row for row in scored[0].samples if row["task"] == "mgsm_tam"]
    assert sums[0]["question"] == f"கேள்வி: {local_tasks.QUESTIONS[local_tasks.SHOTS]}\nவிடை:"
    assert sums[0]["target"] == "நீர்" and sums[0]["metric"] == "exact_match,strict-match"
    assert sums[0]["prediction"] in (*sums[0]["answer"].split(), "[invalid]") and sums[0]["score"] in (0.0, 1.0)
    translated = [row for row in scored[0].samples if row["task"] == "flores_tam"]
    assert "score" not in translated[0] and len(translated[0]["counts"]) == 18
    total = np.sum([row["counts"] for row in translated], axis=0)
    value = next(row["value"] for row in scored[0].records if row["metric"] == "chrf")
    assert metrics.scorer_of_aggregate(lm_metrics.chrf)(total) == pytest.approx(value)


@pytest.mark.parametrize("primary", ["exact_match,flexible-extract", "exact_match"])
def test_a_filter_can_be_primary(tmp_path: Path, primary: str) -> None:
    own = local_tasks.write(tmp_path / "own", ["mgsm_tam"])
    yaml = own / "mgsm_tam.yaml"
    stated = yaml.read_text(encoding="utf-8").replace("language: tam}", f"language: tam, primary: '{primary}'}}")
    yaml.write_text(stated, encoding="utf-8")
    tokenizer = chat_tokenizer()
    scores = harness.evaluate(chat_model(tokenizer), tokenizer, task_set.prepare(include_path=own, limit=1))
    expected = primary if "," in primary else f"{primary},strict-match"
    assert [row["metric"] for row in scores.records if row["primary"] and row["task"] == "mgsm_tam"] == [expected]


def test_an_unknown_primary_metric_is_one_line(tmp_path: Path) -> None:
    own = local_tasks.write(tmp_path / "own", ["mgsm_tam"])
    yaml = own / "mgsm_tam.yaml"
    stated = yaml.read_text(encoding="utf-8").replace("language: tam}", "language: tam, primary: chrf}")
    yaml.write_text(stated, encoding="utf-8")
    with pytest.raises(
        BadInput, match=r"^tasks: mgsm_tam has no metric .*, got primary 'chrf' \(it has exact_match, ex"
    ):
        task_set.prepare(include_path=own)


@pytest.mark.parametrize("within", ["\n", "\n    "])  # imported with the file, and within the function
def test_a_missing_package_is_one_line_before_anything_runs(tmp_path: Path, within: str) -> None:
    own = local_tasks.write(tmp_path / "own", ["xlsum_tam"])
    function = "\ndef process_results(document, results):" if within != "\n" else ""
    rest = "    return {'rougeL': 1.0}\n" if function else "def process_results(document, results): ...\n"
    (own / "rouge.py").write_text(f"{function}{within}import bert_score.scorer\n{rest}", encoding="utf-8")
    expected = (
        r"^tasks: xlsum_tam needs the Python package bert_score, .* Install it \(pip install bert-score\), or leave"
    )
    with pytest.raises(BadInput, match=expected):
        task_set.prepare(include_path=own)


def test_an_unknown_metric_is_one_line_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    def unreachable(name: str) -> None:
        raise ConnectionError(f"cannot reach the hub for {name}")

    monkeypatch.setattr(evaluate, "load", unreachable)
    own = local_tasks.write(tmp_path / "own", ["mgsm_tam"])
    yaml = own / "mgsm_tam.yaml"
    yaml.write_text(
        yaml.read_text(encoding="utf-8").replace("metric: exact_match", "metric: comet22"), encoding="utf-8"
    )
    with pytest.raises(
        BadInput, match=r"^tasks: mgsm_tam has a metric that lm-eval does not have .*, got 'comet22'\. Take"
    ):
        task_set.prepare(include_path=own)


def test_metrics_that_run_answers_are_not_tried(tmp_path: Path) -> None:
    """lm-eval wants a confirmation before it runs code; a target of a data set is code too."""
    own = local_tasks.write(tmp_path / "own", ["xlsum_tam"])
    (own / "rouge.py").write_text("def process_results(document, results):\n    import bert_score\n", encoding="utf-8")
    with (own / "xlsum_tam.yaml").open("a", encoding="utf-8") as file:
        file.write("unsafe_code: true\n")
    assert task_set.prepare(include_path=own).entries
