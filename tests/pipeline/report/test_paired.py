"""Paired comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from common.files import write_jsonl
from eval.metrics import ratio_interval
from pipeline.baselines import BASELINES
from pipeline.report import formatting
from pipeline.report.inference import Estimate, holm, verdict
from pipeline.report.paired import Evidence, compare
from pipeline.report.records import Evaluation
from tests.pipeline.report.synthetic import Run


def test_comparisons_pair_items_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    run = Run(tmp_path, {"ties": (0.1, 0.1, 0.1)}, {}, seeds=(0, 1))
    given = [one for one in run.evaluations if not (one.method == "ct" and one.seed == 1)]
    found = {(one.baseline, one.kind, one.ct_tokens): one for one in compare(Evidence(given, "nya"))}
    assert len(found) == 3 * 3 * 3
    same = found["ct_then_sft", "accuracy", 10_000]
    assert same.difference.value == pytest.approx(0.1) and same.verdict == "better"
    assert (same.difference.n, same.difference.seeds, same.difference.documents) == (400, 2, 50)
    one_seed = found["ct", "accuracy", 10_000]
    assert one_seed.difference.value == pytest.approx(0.2) and one_seed.difference.seeds == 1
    assert one_seed.verdict == "inconclusive"
    assert found["sft", "bits", 1_000_000].difference.value == pytest.approx(2.9 - 5.0)
    assert found["sft", "bits", 1_000_000].verdict == "better"
    assert found["ct_then_sft", "answer_bits", 10_000].difference.value == pytest.approx(-0.1)
    assert found["ct_then_sft", "answer_bits", 10_000].verdict == "better"


def test_arms_that_train_are_not_compared_as_merges(tmp_path: Path) -> None:
    methods = [*BASELINES, "ties", "average_of_ct_then_sft_and_ct", "chat_vector"]
    evidence = Evidence([Evaluation(method, 1_000, 0, tmp_path) for method in methods], "nya")
    assert evidence.merges == ["ties", "average_of_ct_then_sft_and_ct", "chat_vector"]


def test_all_comparisons_share_the_chance_of_error(tmp_path: Path) -> None:
    comparisons = compare(Evidence(Run(tmp_path, {"ties": (0.1, 0.0, -0.1)}, {}).evaluations, "nya"))
    adjusted = holm([one.difference.p for one in comparisons])
    assert [one.p_adjusted for one in comparisons] == adjusted
    verdicts = {
        one.ct_tokens: one.verdict for one in comparisons if (one.baseline, one.kind) == ("ct_then_sft", "accuracy")
    }
    assert verdicts == {10_000: "better", 100_000: "equivalent", 1_000_000: "worse"}


def test_equals_are_level(tmp_path: Path) -> None:
    found = compare(Evidence(Run(tmp_path, {"ties": (0.0, 0.0, 0.0)}, {}, seeds=(0, 1, 2)).evaluations, "nya"))
    assert {one.verdict for one in found if one.baseline == "ct_then_sft"} == {"equivalent"}


def test_numbers_are_written_with_a_sign() -> None:
    assert formatting.signed(-1e-17) == "+0.000" and formatting.signed(-0.25) == "\u22120.250"
    assert formatting.signed(float("-inf")) == "\u2212\u221e"


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    run = Run(tmp_path, {"ties": (0.1, 0.1, 0.1)}, {})
    samples = run.evaluations[-1].folder / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"id": "7"', '"id": "another"'))
    with pytest.raises(ValueError, match="samples.jsonl: not the same items"):
        run.claims()


def answers(values: Any, task: str = "t", each: int = 1) -> list[dict[str, Any]]:
    """Items right or wrong, `each` of them a document."""
    return [
        {"task": task, "id": str(k), "document": f"{task}{k // each}", "metric": "acc", "score": float(value)}
        for k, value in enumerate(values)
    ]


def compared(
    tmp_path: Path, *seeds: tuple[list[dict[str, Any]], list[dict[str, Any]]], kind: Any = "accuracy"
) -> Estimate:
    """A minus B, from samples alone: a pair of them a seed."""
    evaluations = []
    for seed, sides in enumerate(seeds):
        for method, samples in zip("ab", sides, strict=True):
            folder = tmp_path / f"{method}{seed}"
            folder.mkdir()
            write_jsonl(folder / "samples.jsonl", samples)
            tasks = dict.fromkeys(row["task"] for row in samples)
            write_jsonl(folder / "scores.jsonl", [{"task": task, "family": task, "language": "nya"} for task in tasks])
            evaluations.append(Evaluation(method, 1_000, seed, folder))
    difference = Evidence(evaluations, "nya").difference(kind, [("a", 1_000)], [("b", 1_000)])
    assert difference is not None
    return difference


def test_items_are_paired_whatever_their_order(tmp_path: Path) -> None:
    a, b = answers([1, 1, 1, 0, 1, 0, 1, 1]), answers([0, 0, 1, 0, 1, 1, 0, 0])
    difference = compared(tmp_path, (a, b[::-1]))
    assert (difference.value, difference.n) == (0.375, 8)
    assert difference.low < difference.value < difference.high


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    a = answers([1, 0, 1])
    difference = compared(tmp_path, (a, a))
    assert (difference.value, difference.p) == (0.0, 1.0)


def test_a_few_items_answered_alike_are_no_proof_of_being_level(tmp_path: Path) -> None:
    """The rule of three: none among n leaves room for 3 in n."""
    seeds = 3
    for n, expected in ((30, "inconclusive"), (600, "equivalent")):
        (tmp_path / str(n)).mkdir()
        alike = answers([1.0, 0.0] * (n // 2))
        difference = compared(tmp_path / str(n), *[(alike, alike)] * seeds)
        assert (difference.low, difference.high) == pytest.approx((-3 / n, 3 / n), rel=0.01)
        assert verdict(difference, 0.02, difference.p) == expected


def test_items_that_stand_alone_give_the_paired_t_test(tmp_path: Path) -> None:
    """Pairing is narrower than independent samples would be."""
    rng = np.random.default_rng(4)
    a = (rng.random(300) < 0.5).astype(float)
    b = np.where(rng.random(300) < 0.05, 1 - a, a)
    difference = compared(tmp_path, (answers(a), answers(b)))
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert (difference.low, difference.high, difference.p) == pytest.approx(
        (interval.low, interval.high, expected.pvalue)
    )


def test_items_of_a_document_do_not_count_as_many(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    chapters = rng.random(60) < 0.5
    a, b = np.repeat(chapters, 5), np.zeros(300)
    (tmp_path / "alone").mkdir()
    alone = compared(tmp_path / "alone", (answers(a), answers(b)))
    (tmp_path / "together").mkdir()
    together = compared(tmp_path / "together", (answers(a, each=5), answers(b, each=5)))
    assert alone.value == together.value and together.documents == 60
    assert together.high - together.low == pytest.approx((alone.high - alone.low) * 5**0.5, rel=0.03)


def test_documents_that_two_tasks_share_are_drawn_together(tmp_path: Path) -> None:
    values = np.random.default_rng(6).random(40) < 0.5
    first = answers(values, "x")
    second = [{**row, "task": "y"} for row in first]
    zeros = [{**row, "score": 0.0} for row in first + second]
    (tmp_path / "both").mkdir()
    both = compared(tmp_path / "both", (first + second, zeros))
    (tmp_path / "one").mkdir()
    one = compared(tmp_path / "one", (first, zeros[:40]))
    assert (both.low, both.high) == pytest.approx((one.low, one.high))  # the second task tells nothing new


def test_items_without_a_document_stand_alone_in_every_task(tmp_path: Path) -> None:
    """Their document is their number, which other tasks have too."""
    rows = [{**row, "document": row["id"]} for task in "xy" for row in answers([1, 0] * 20, task)]
    difference = compared(tmp_path, (rows, [{**row, "score": 0.0} for row in rows]))
    assert (difference.n, difference.documents) == (80, 80)


def test_tasks_weigh_alike(tmp_path: Path) -> None:
    a = answers([1.0] * 90, "large") + answers([0.0] * 10, "small")
    b = answers([0.0] * 90, "large") + answers([1.0] * 10, "small")
    assert compared(tmp_path, (a, b)).value == 0


def coded(bits: Any, sizes: Any) -> list[dict[str, Any]]:
    return [
        {"task": "t", "id": str(k), "document": str(k), "metric": "bits_per_byte", "bits": float(b), "bytes": int(s)}
        for k, (b, s) in enumerate(zip(bits, sizes, strict=True))
    ]


def test_a_difference_of_bits_is_of_the_totals(tmp_path: Path) -> None:
    a, b = coded([200, 30], [100, 10]), coded([189, 19], [100, 10])
    difference = compared(tmp_path, (a, b), kind="bits")
    assert (difference.value, difference.n) == (pytest.approx(22 / 110), 2)


def test_a_ratios_spread_is_the_bootstraps(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    sizes = rng.integers(100, 900, 200)
    gaps = sizes * rng.normal(0.3, 0.2, 200)
    difference = compared(tmp_path, (coded(sizes * 2 + gaps, sizes), coded(sizes * 2, sizes)), kind="bits")
    assert (difference.low, difference.high) == pytest.approx(ratio_interval(list(gaps), list(sizes)), abs=0.006)


@pytest.mark.parametrize("b", [answers([1, 0]), answers([1, 0, 1, 1]), answers([1, 0, 1], "other")])
def test_samples_of_other_items_are_refused(tmp_path: Path, b: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="not the same items"):
        compared(tmp_path, (answers([1, 0, 1]), b))


def test_seeds_count_as_drawn(tmp_path: Path) -> None:
    """Where seeds differ and items do not, the interval is Student's over seeds."""
    zeros = answers([0.0] * 100)
    shares = [0.3, 0.5, 0.4]
    sides = [([{**row, "score": share} for row in zeros], zeros) for share in shares]
    difference = compared(tmp_path, *sides)
    interval = stats.ttest_1samp(shares, 0.0).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
