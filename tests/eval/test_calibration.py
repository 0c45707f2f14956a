"""Label priors are divided out without a look at an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import harness, metrics, task_set
from tests.eval.conftest import make_items, write_jsonl

LABELS = ["mulungu", "nyanja", "mzimu"]


def labelled(count: int, seed: int, split: str, shuffle: bool = False) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = make_items("genre", "nya", count, seed)
    for row in rows:
        choices = [str(label) for label in rng.permutation(LABELS)] if shuffle else LABELS
        row |= {"id": f"{split}.{row['id']}", "choices": choices, "answer": row["answer"] % 3, "trivial": 0}
    return rows


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    write_jsonl(folder / f"genre_nya.{split}.jsonl", rows)


def by_metric(scores: harness.Scores) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in scores.records if row["family"] == "genre"}


def test_a_constant_preference_among_labels_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 4))
    biased = values + [5.0, 0.0, -3.0, 0.0]
    plain = metrics.calibrated_choices(values, values)
    # a bias of the logits is divided out but for how much it squeezes the shares of the others
    assert (np.argmax(biased, axis=1) == 0).mean() > 0.95
    assert np.bincount(metrics.calibrated_choices(biased, biased), minlength=4).min() > 20
    assert (plain == metrics.calibrated_choices(values + 7.0, values)).all()  # a prompt's own level plays no part


def test_priors_are_the_mean_shares() -> None:
    values = np.log([[0.2, 0.6], [0.1, 0.1]])
    assert np.exp(metrics.log_priors(values)) == pytest.approx([(0.25 + 0.5) / 2, (0.75 + 0.5) / 2])


def test_calibration_recovers_what_a_label_prior_hides() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(3, size=600)
    values = np.log(np.where(np.eye(3)[truth] > 0, 0.5, 0.25)) + rng.normal(0, 0.3, (600, 3)) + [2.0, 0.0, 0.0]
    raw = (np.argmax(values, axis=1) == truth).mean()
    better = (metrics.calibrated_choices(values[:300], values[300:]) == truth[:300]).mean()
    assert raw < 0.45 and better > 0.7


def test_a_fixed_set_of_labels_is_judged_calibrated_with_raw_beside(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    write(tmp_path, "dev", labelled(30, 0, "dev"))
    write(tmp_path, "test", labelled(24, 1, "test"))
    tasks = task_set.prepare(tmp_path)
    entry = tasks.entries["genre_nya"]
    assert entry.labels == tuple(LABELS) and entry.primary == "acc_calibrated"
    scores = harness.evaluate(model, tokenizer, tasks)
    rows = by_metric(scores)
    assert list(rows) == ["acc_calibrated", "acc", "acc_norm", "answer_bits_per_byte"]
    assert [row["primary"] for row in rows.values()] == [True, False, False, False]
    for metric in ("acc_calibrated", "acc"):
        assert list(rows[metric]["predictions"]) == LABELS and sum(rows[metric]["predictions"].values()) == 24
    spread = [max(rows[metric]["predictions"].values()) for metric in ("acc_calibrated", "acc")]
    assert spread[0] < spread[1]  # the model without training has its favourite
    assert rows["answer_bits_per_byte"]["predictions"] is None
    assert len(scores.samples) == 24 and {row["metric"] for row in scores.samples} == {"acc_calibrated"}
    counts = [sum(LABELS[row["prediction"]] == label for row in scores.samples) for label in LABELS]
    assert counts == list(rows["acc_calibrated"]["predictions"].values())


def test_dev_prompts_calibrate_and_their_answers_play_no_part(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    write(tmp_path, "test", labelled(24, 1, "test"))
    alone = by_metric(harness.evaluate(model, tokenizer, task_set.prepare(tmp_path)))
    dev = labelled(30, 0, "dev")
    found = []
    for answers in (0, 2):
        write(tmp_path, "dev", [{**row, "answer": answers} for row in dev])
        found.append(harness.evaluate(model, tokenizer, task_set.prepare(tmp_path)))
    assert found[0] == found[1]
    assert by_metric(found[0])["acc"] == alone["acc"]
    with_other_prompts = labelled(30, 0, "dev")
    for row in with_other_prompts:
        row["prompt"] = "mzimu mzimu mzimu"
    write(tmp_path, "dev", with_other_prompts)
    other = harness.evaluate(model, tokenizer, task_set.prepare(tmp_path))
    assert by_metric(other)["acc_calibrated"]["predictions"] != by_metric(found[0])["acc_calibrated"]["predictions"]


def test_labels_in_any_order_are_the_same_labels(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    rows = labelled(24, 1, "test", shuffle=True)
    write(tmp_path, "test", rows)
    shuffled = harness.evaluate(model, tokenizer, task_set.prepare(tmp_path))
    straight = [{**row, "choices": LABELS, "answer": LABELS.index(row["choices"][row["answer"]])} for row in rows]
    write(tmp_path, "test", straight)
    plain = harness.evaluate(model, tokenizer, task_set.prepare(tmp_path))
    chosen = [row["choices"][sample["prediction"]] for row, sample in zip(rows, shuffled.samples, strict=True)]
    assert chosen == [LABELS[sample["prediction"]] for sample in plain.samples]
    assert [sample["score"] for sample in shuffled.samples] == [sample["score"] for sample in plain.samples]


def test_the_tries_on_dev_calibrate_on_their_own_prompts(tmp_path: Path) -> None:
    write(tmp_path, "dev", labelled(12, 0, "dev"))
    assert task_set.prepare(tmp_path, split="dev").entries["genre_nya"].calibration is None


def test_other_labels_do_not_calibrate(tmp_path: Path) -> None:
    write(tmp_path, "test", labelled(12, 0, "test"))
    write(tmp_path, "dev", [{**row, "choices": ["a", "b", "c"]} for row in labelled(12, 0, "dev")])
    entry = task_set.prepare(tmp_path).entries["genre_nya"]
    assert entry.labels and entry.calibration is None


def test_words_are_judged_by_acc(folders: tuple[Path, Path], model: Any, tokenizer: Any) -> None:
    scores = harness.evaluate(model, tokenizer, task_set.prepare(folders[0]))
    primary = {row["task"]: row["metric"] for row in scores.records if row["primary"]}
    assert set(primary.values()) == {"acc"}
    assert all(row["predictions"] is None for row in scores.records)


def test_gold_bits_are_those_of_the_right_choice(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    import torch

    items = make_items("next", "nya", 5, 3)
    items = [{**item, "document": f"chapter {number // 2}"} for number, item in enumerate(items)]
    write_jsonl(tmp_path / "next_nya.test.jsonl", items)
    scores = harness.evaluate(model, tokenizer, task_set.prepare(tmp_path))
    total = size = 0.0
    for item, sample in zip(items, scores.samples, strict=True):
        answer = " " + item["choices"][item["answer"]]
        prompt = tokenizer.encode(item["prompt"])
        tokens = torch.tensor([prompt + tokenizer.encode(answer)])
        with torch.no_grad():
            shares = model(tokens).logits[0].log_softmax(-1)
        bits = -sum(float(shares[i - 1, tokens[0, i]]) for i in range(len(prompt), tokens.shape[1])) / np.log(2)
        assert sample["answer_bits"] == pytest.approx(bits, rel=1e-4)
        assert sample["answer_bytes"] == len(answer.encode())
        assert sample["document"] == item["document"]
        total, size = total + bits, size + len(answer.encode())
    rows = {(row["family"], row["metric"]): row for row in scores.records}
    for family in ("next", "mean"):
        row = rows[family, "answer_bits_per_byte"]
        assert row["value"] == pytest.approx(total / size, rel=1e-4) and row["low"] < row["value"] < row["high"]
        assert not row["primary"]
    assert json.dumps(scores.records)  # plain numbers
