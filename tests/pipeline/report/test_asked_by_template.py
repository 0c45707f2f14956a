"""Reports of checkpoints that were asked plain and by a chat template, and of tasks that generate."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api import metrics as lm_metrics

from common.files import read_jsonl, write_jsonl
from eval import metrics
from pipeline.report import data, paired
from pipeline.report.records import Evaluation
from pipeline.report.samples import pick_generated
from tests.pipeline.report.synthetic import GOOD, LOST, Run, write_scores

ANSWERS = {"sft": "நீர் <b>ஓடும்</b>", "ct": "ཆུ་", "ct_then_sft": "நீர்"}


def add(folder: Path, records: list[dict[str, Any]], samples: list[dict[str, Any]]) -> None:
    for name, rows in (("scores.jsonl", records), ("samples.jsonl", samples)):
        write_jsonl(folder / name, [*read_jsonl(folder / name), *rows])


def record(task: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
    row = {"task": task, "family": "sums", "language": "nya", "metric": metric, "primary": True, "predictions": None}
    row |= {"value": value, "low": value, "high": value, "n": 2, "chance": None, "trivial": None}
    return row | more


def samples(task: str, answer: str, scores: tuple[float, ...] | None, metric: str) -> list[dict[str, Any]]:
    rows = []
    for place in range(2):
        row = {"task": task, "id": f"{place}", "document": f"{place}", "metric": metric, "target": "நீர்"}
        row |= {"question": f"கேள்வி {place}?", "answer": answer, "prediction": answer}
        rows.append(row | ({"score": scores[place]} if scores else {}))
    return rows


def translated(task: str, count: int, share: float, seed: int) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Samples of a task that is judged by chrF, and what lm-eval would keep of each: (reference, generated)."""
    draw = random.Random(seed)
    items = []
    for _ in range(count):
        words = ["".join(draw.choices(("நீ", "ர்", "ஆ", "று"), k=3)) for _ in range(6)]
        items.append((" ".join(words), " ".join(word if draw.random() < share else "மலை" for word in words)))
    counts = metrics.sentence_counts(lm_metrics.chrf, items)
    assert counts is not None
    rows = [
        {"task": task, "id": f"{n}", "document": f"{n}", "metric": "chrf", "counts": row.tolist(), "counted": "chrf"}
        for n, row in enumerate(counts)
    ]
    return rows, items


@pytest.mark.parametrize("second", [0.5, 0.8])
def test_translations_are_compared_by_the_score_of_the_corpus(tmp_path: Path, second: float) -> None:
    """A document's influence is what leaving it out changes; the variance is near that of drawing documents."""
    evaluations, values, kept = [], [], []
    for method, share in (("sft", 0.8), ("ct", second)):
        rows, items = translated("flores_nya", 60, share, len(method))
        folder = tmp_path / method
        folder.mkdir()
        values.append(lm_metrics.chrf(items))
        kept.append(items)
        score = record("flores_nya", "chrf", values[-1], aggregate=True)
        for name, written in (("scores.jsonl", [score]), ("samples.jsonl", rows)):
            write_jsonl(folder / name, written)
        evaluations += [Evaluation(method, 0 if method == "sft" else 10, seed, folder) for seed in (0, 1)]
    evidence = paired.Evidence(evaluations, "nya")
    difference = evidence.difference("corpus", [("ct", 10)], [("sft", 0)])
    assert difference is not None and difference.value == pytest.approx(values[1] - values[0])
    draws = np.random.default_rng(0).integers(60, size=(300, 60))
    drawn = [
        lm_metrics.chrf([kept[1][place] for place in draw]) - lm_metrics.chrf([kept[0][place] for place in draw])
        for draw in draws
    ]
    found = paired.measured("corpus", paired.samples_by_kind(evaluations[0].folder, "nya")["corpus"])
    assert found.value == pytest.approx(values[0]) and abs(found.influence.sum()) < 1e-9
    width = np.subtract(*np.percentile(drawn, [97.5, 2.5]))
    assert difference.high - difference.low == pytest.approx(width, rel=0.35)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Evaluation]:
    """SFT and CT-then-SFT asked plain and by their template, CT plain, for want of one."""
    root, evaluations = tmp_path_factory.mktemp("both"), []
    for method, chat in (("sft", 1.0), ("ct", None), ("ct_then_sft", 0.5)):
        for seed in (0, 1):
            folder = write_scores(root / f"{method}{seed}", {"genre": 0.5, "blank": 0.5}, 5.0)
            add(folder, [record("sums_nya", "exact_match", 0.0, chat=False)], [])
            add(folder, [record("flores_nya", "chrf", 40.0, chat=False, aggregate=True)], [])
            add(folder, [], samples("sums_nya", ANSWERS[method], (0.0, 0.0), "exact_match"))
            add(folder, [], samples("flores_nya", ANSWERS[method], None, "chrf"))
            if chat is not None:
                add(folder, [record("sums_nya@chat", "exact_match", chat, chat=True)], [])
                add(folder, [record("mean_nya@chat", "acc", chat, family="mean", chat=True)], [])
                scores = (1.0, 1.0) if chat == 1.0 else (1.0, 0.0)
                add(folder, [], samples("sums_nya@chat", ANSWERS[method], scores, "exact_match"))
            budget = 0 if method == "sft" else 10_000
            evaluations.append(Evaluation(method, budget, seed, folder))
    return evaluations


def test_differences_are_tested_within_a_mode(both: list[Evaluation]) -> None:
    evidence = paired.Evidence(both, "nya")
    chat = evidence.difference("chat", [("ct_then_sft", 10_000)], [("sft", 0)])
    assert chat is not None and chat.value == pytest.approx(-0.5) and chat.n == 2
    assert evidence.difference("chat", [("ct_then_sft", 10_000)], [("ct", 10_000)]) is None
    plain = evidence.difference("accuracy", [("ct_then_sft", 10_000)], [("ct", 10_000)])
    assert plain is not None and plain.value == 0.0
    kinds = {(c.method, c.kind) for c in paired.compare(evidence, [("ct_then_sft", "sft"), ("ct", "sft")])}
    assert ("ct_then_sft", "chat") in kinds and ("ct", "chat") not in kinds and ("ct", "accuracy") in kinds


def test_rows_state_how_they_were_asked(both: list[Evaluation]) -> None:
    rows = data.gather(both)
    written = list(csv.DictReader(io.StringIO(data.to_csv(rows))))
    modes = {(row["method"], row["task"]): row["chat"] for row in written if row["task"].startswith("sums")}
    assert modes == {
        ("sft", "sums_nya"): "False",
        ("sft", "sums_nya@chat"): "True",
        ("ct", "sums_nya"): "False",
        ("ct_then_sft", "sums_nya"): "False",
        ("ct_then_sft", "sums_nya@chat"): "True",
    }
    measures = data.measures(rows, "nya")
    names = {measure.task: measure.name for measure in measures if measure.metric != "answer_bits_per_byte"}
    assert names["mean_nya"] == "mean accuracy" and names["mean_nya@chat"] == "mean accuracy by chat template"
    assert names["sums_nya@chat"].endswith("by chat template") and "by chat" not in names["sums_nya"]


def test_without_a_template_the_columns_are_those_of_before(tmp_path: Path) -> None:
    folder = write_scores(tmp_path / "a", {"genre": 0.5, "blank": 0.5}, 5.0)
    text = data.to_csv(data.gather([Evaluation("sft", 0, 0, folder)]))
    assert text.splitlines()[0] == ",".join(data.COLUMNS) and "chat" not in data.COLUMNS


def test_generated_items_are_drawn_by_their_ids_with_whole_answers(both: list[Evaluation]) -> None:
    items = pick_generated(both, ["nya", "en"])
    assert [item.task for item in items] == [
        *("flores_nya", "flores_nya", "sums_nya", "sums_nya", "sums_nya@chat", "sums_nya@chat")
    ]
    plain, chat = items[2], items[4]
    assert {method: said.text for method, said in plain.answers.items()} == ANSWERS
    assert set(chat.answers) == {"sft", "ct_then_sft"} and chat.target == "நீர்"
    assert items[0].answers["sft"].score is None and plain.answers["sft"].score == 0.0
    assert pick_generated(both, ["en"]) == []


def test_the_page_has_the_answers(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", GOOD, LOST)
    for evaluation in run.evaluations:
        if not (evaluation.folder / "asked").exists():
            (evaluation.folder / "asked").touch()
            said = ANSWERS.get(evaluation.method, "மலை")
            add(
                evaluation.folder,
                [record("sums_nya", "exact_match", 0.0)],
                samples("sums_nya", said, (0.0, 0.0), "exact_match"),
            )
    html = run.render(tmp_path / "out").page.read_text(encoding="utf-8")
    assert "நீர் &lt;b&gt;ஓடும்&lt;/b&gt;" in html and "<b>ஓடும்" not in html
    assert "The items of each task are drawn by chance." in html and 'href="#samples"' in html
    assert "கேள்வி 0?" in html and "கேள்வி 1?" in html
