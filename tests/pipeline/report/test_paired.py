"""Paired comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import read_jsonl, write_jsonl
from eval.stats import mean_interval, percentiles, resampled_sums
from pipeline.report import claims
from pipeline.report.paired import Difference, Evidence, compare
from pipeline.report.records import Evaluation
from tests.pipeline.report.synthetic import N, Run


def test_comparisons_pair_items_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    run = Run(tmp_path, {"ties": (0.1, 0.1, 0.1)}, {}, seeds=(0, 1))
    given = [one for one in run.evaluations if not (one.method == "ct" and one.seed == 1)]
    found = {(one.baseline, one.kind, one.ct_tokens): one for one in compare(Evidence(given, "nya"))}
    assert len(found) == 3 * 2 * 3
    same = found["ct_then_sft", "accuracy", 10_000]
    assert same.difference.value == pytest.approx(0.1) and same.verdict == "better"
    assert found["ct", "accuracy", 10_000].difference.value == pytest.approx(0.2)  # seed 0 of both
    assert found["sft", "bits", 1_000_000].difference.value == pytest.approx(2.9 - 5.0)
    assert found["sft", "bits", 1_000_000].verdict == "better"
    gained = [
        0.5 * (80 <= item * 37 % N < 120) for item in sorted(range(N), key=str)
    ]  # items that ties has right and CT-then-SFT has not
    expected = mean_interval([gained, gained])
    assert (same.difference.low, same.difference.high) == pytest.approx(expected)


def test_equals_are_not_told_apart(tmp_path: Path) -> None:
    found = compare(Evidence(Run(tmp_path, {"ties": (0.0, 0.0, 0.0)}, {}, seeds=(0, 1, 2)).evaluations, "nya"))
    assert {one.verdict for one in found if one.baseline == "ct_then_sft"} == {"not shown"}
    assert claims.signed(-1e-17) == "+0.000" and claims.signed(-0.25) == "\u22120.250"


@pytest.mark.parametrize("kind", ["accuracy", "bits"])
def test_comparisons_are_the_bootstrap_of_the_items_differences(tmp_path: Path, kind: Any) -> None:
    run = Run(tmp_path, {"ties": (0.13, 0.1, 0.1)}, {})
    sides = []
    for method in ("ties", "ct"):
        folder = next(one.folder for one in run.evaluations if (one.method, one.ct_tokens) == (method, 10_000))
        rows = [row for row in read_jsonl(folder / "samples.jsonl") if row["task"].endswith("_nya")]
        rows = [row for row in rows if ("bits" in row) == (kind == "bits")]
        sides.append(sorted(rows, key=lambda row: (row["task"], row["id"])))
    pairs = list(zip(*sides, strict=True))
    if kind == "accuracy":
        tasks = dict.fromkeys(row["task"] for row in sides[0])
        groups = [[a["score"] - b["score"] for a, b in pairs if a["task"] == task] for task in tasks]
        value, (low, high) = np.mean([np.mean(group) for group in groups]), mean_interval(groups)
    else:
        columns = np.asarray([(a["bits"] - b["bits"], a["bytes"]) for a, b in pairs])
        sums = resampled_sums(columns, 0)
        value, (low, high) = columns[:, 0].sum() / columns[:, 1].sum(), percentiles(sums[:, 0] / sums[:, 1])
    difference = Evidence(run.evaluations, "nya").difference(kind, [("ties", 10_000)], [("ct", 10_000)])
    assert difference is not None and difference.n == len(pairs)
    assert (difference.value, difference.low, difference.high) == pytest.approx((value, low, high))


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    run = Run(tmp_path, {"ties": (0.1, 0.1, 0.1)}, {})
    samples = run.evaluations[-1].folder / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"id": "7"', '"id": "another"'))
    with pytest.raises(ValueError, match="samples.jsonl: not the same items"):
        run.claims()


def answers(values: Any, task: str = "t") -> list[dict[str, Any]]:
    return [{"task": task, "id": str(k), "metric": "acc", "score": float(value)} for k, value in enumerate(values)]


def compared(tmp_path: Path, a: list[dict[str, Any]], b: list[dict[str, Any]], kind: Any = "accuracy") -> Difference:
    """A minus B, from samples alone."""
    evaluations = []
    for method, samples in (("a", a), ("b", b)):
        folder = tmp_path / method
        folder.mkdir()
        write_jsonl(folder / "samples.jsonl", samples)
        tasks = dict.fromkeys(row["task"] for row in samples)
        write_jsonl(folder / "scores.jsonl", [{"task": task, "language": "nya"} for task in tasks])
        evaluations.append(Evaluation(method, 1_000, 0, folder))
    difference = Evidence(evaluations, "nya").difference(kind, [("a", 1_000)], [("b", 1_000)])
    assert difference is not None
    return difference


def test_items_are_paired_whatever_their_order(tmp_path: Path) -> None:
    a, b = answers([1, 1, 1, 0, 1, 0, 1, 1]), answers([0, 0, 1, 0, 1, 1, 0, 0])
    difference = compared(tmp_path, a, b[::-1])
    assert (difference.value, difference.n) == (0.375, 8)
    assert difference.low < difference.value < difference.high


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    a = answers([1, 0, 1])
    assert compared(tmp_path, a, a) == Difference(0.0, 0.0, 0.0, 3)


def test_pairing_is_narrower_than_independent_samples_would_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    a = (rng.random(300) < 0.5).astype(float)
    b = np.where(rng.random(300) < 0.05, 1 - a, a)
    difference = compared(tmp_path, answers(a), answers(b))
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * np.std(a - b) / np.sqrt(300), rel=0.15)


def test_tasks_weigh_alike(tmp_path: Path) -> None:
    a = answers([1.0] * 90, "large") + answers([0.0] * 10, "small")
    b = answers([0.0] * 90, "large") + answers([1.0] * 10, "small")
    assert compared(tmp_path, a, b).value == 0


def test_a_difference_of_bits_is_of_the_totals(tmp_path: Path) -> None:
    a = [
        {"task": "t", "id": str(k), "metric": "bits_per_byte", "bits": bits, "bytes": size}
        for k, (bits, size) in enumerate([(200, 100), (30, 10)])
    ]
    b = [{**row, "bits": row["bits"] - 11} for row in a]
    difference = compared(tmp_path, a, b, "bits")
    assert (difference.value, difference.n) == (pytest.approx(22 / 110), 2)


@pytest.mark.parametrize("b", [answers([1, 0]), answers([1, 0, 1, 1]), answers([1, 0, 1], "other")])
def test_samples_of_other_items_are_refused(tmp_path: Path, b: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="not the same items"):
        compared(tmp_path, answers([1, 0, 1]), b)
