"""Intervals over seeds and documents: simulated coverage, known answers, and verdicts of each kind."""

from __future__ import annotations

from math import inf, isinf
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.report.inference import Estimate, holm, two_way_clustered, verdict

Floats = Any


def influences(sums: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Values and influences of ratios: (seeds, documents) sums over (documents,) sizes."""
    values = sums.sum(axis=1) / sizes.sum()
    return values, (sums - sizes * values[:, None]) / sizes.sum()


def draw(rng: Any, seeds: int, documents: int, of_seed: float, of_document: float, noise: float) -> Floats:
    """Differences of right answers, summed by document: a true difference of .03, and about five items a document."""
    sizes = rng.poisson(5, documents) + 1.0
    truth = 0.03 + rng.normal(0, of_document, documents) + rng.normal(0, of_seed, (seeds, 1))
    return sizes * truth + rng.normal(0, noise, (seeds, documents)) * np.sqrt(sizes), sizes


def crossed_bootstrap(rng: Any, sums: Floats, sizes: Floats, resamples: int = 400) -> Floats:
    """Owen's pigeonhole bootstrap: seeds and documents are drawn with replacement, each by itself."""
    seeds, documents = sums.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    columns = rng.multinomial(documents, np.full(documents, 1 / documents), resamples)
    return ((rows @ sums) * columns).sum(axis=1) / (seeds * (columns @ sizes))


# discordance of .17 (a standard deviation of .41 an item), 118 chapters and a seed's sd of .012 are what was measured
@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_document"), [(5, 0.012, 0.0), (5, 0.02, 0.1), (5, 0.03, 0.0), (8, 0.012, 0.1)]
)
def test_intervals_cover_the_truth_95_times_in_100(seeds: int, of_seed: float, of_document: float) -> None:
    rng = np.random.default_rng(7)
    trials = 2_000
    covered = 0
    for _ in range(trials):
        estimate = two_way_clustered(*influences(*draw(rng, seeds, 118, of_seed, of_document, 0.41)), n=600)
        covered += estimate.low <= 0.03 <= estimate.high
    assert 0.93 <= covered / trials <= 0.97


def test_percentiles_of_the_crossed_bootstrap_do_not_with_five_seeds() -> None:
    """Why the interval is not simply resampled: too wide where only items differ, too narrow where seeds do."""
    rng = np.random.default_rng(8)
    shares = []
    for of_seed, noise in ((0.0, 0.41), (0.02, 0.1)):
        covered = 0
        for _ in range(300):
            low, high = np.percentile(
                crossed_bootstrap(rng, *draw(rng, 5, 118, of_seed, 0.0, noise), resamples=200), [2.5, 97.5]
            )
            covered += low <= 0.03 <= high
        shares.append(covered / 300)
    assert shares[0] > 0.97 and shares[1] < 0.92


def test_the_spread_is_that_of_the_crossed_bootstrap_where_seeds_and_documents_are_many() -> None:
    rng = np.random.default_rng(9)
    sums, sizes = draw(rng, 60, 150, 0.05, 0.3, 0.1)
    estimate = two_way_clustered(*influences(sums, sizes), n=900)
    error = np.std(crossed_bootstrap(rng, sums, sizes, 4_000))
    assert (estimate.high - estimate.low) / 2 / 1.98 == pytest.approx(error, rel=0.06)


def test_what_is_counted_and_not_sampled_is_students_t_over_seeds() -> None:
    values = [0.1, 0.14, 0.09, 0.12]
    estimate = two_way_clustered(values, np.zeros((4, 0)), n=4)
    expected = stats.ttest_1samp(values, 0.0)
    interval = expected.confidence_interval(0.95)
    assert (estimate.low, estimate.high, estimate.p) == pytest.approx((interval.low, interval.high, expected.pvalue))


def test_one_seed_speaks_of_documents_only() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.1, 1, 400)
    estimate = two_way_clustered([values.mean()], ((values - values.mean()) / 400)[None], n=400)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))
    assert estimate.seeds == 1 and verdict(estimate, 0.02, 0.0) == "inconclusive"


def test_nothing_to_tell_it_from_is_an_infinite_interval() -> None:
    estimate = two_way_clustered([0.3], np.zeros((1, 1)), n=1)
    assert isinf(estimate.high) and estimate.p == 1.0 and estimate.mde == inf


def test_equals_do_not_differ() -> None:
    estimate = two_way_clustered(np.zeros(5), np.zeros((5, 30)), n=100)
    assert (estimate.value, estimate.low, estimate.high, estimate.p, estimate.mde) == (0, 0, 0, 1, 0)
    assert verdict(estimate, 0.02, 1.0) == "equivalent"


def test_the_minimum_detectable_difference_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(2)
    trials = [influences(*draw(rng, 5, 118, 0.012, 0.05, 0.41)) for _ in range(1_500)]
    mde = np.mean([two_way_clustered(values, moves, n=600).mde for values, moves in trials])
    detected = np.mean([two_way_clustered(values - 0.03 + mde, moves, n=600).p < 0.05 for values, moves in trials])
    assert 0.77 < detected < 0.87


def of_effect(rng: Any, effect: float, noise: float = 0.25) -> Estimate:
    """A claim's estimate of five seeds and 118 documents, which differ by `noise` a document."""
    moves = (rng.normal(0, noise, 118) + rng.normal(0, noise, (5, 118))) / 118
    values = effect + rng.normal(0, 0.004, 5) + moves.sum(axis=1)
    return two_way_clustered(values, moves - moves.mean(axis=1, keepdims=True), n=800)


def test_the_minimum_detectable_effect_is_that_of_a_single_claim() -> None:
    """Among 13 claims, a true effect of the mde is shown less often than its own p tells it."""
    rng, runs = np.random.default_rng(12), 400
    mde = float(np.median([of_effect(rng, 0).mde for _ in range(200)]))
    by_itself = shown = 0
    for _ in range(runs):
        estimates = [of_effect(rng, effect) for effect in (mde, *(0.0,) * 12)]
        by_itself += estimates[0].p < 0.05
        shown += verdict(estimates[0], 0.001, holm([estimate.p for estimate in estimates])[0]) == "supported"
    assert 0.73 <= by_itself / runs <= 0.87 and 0.35 <= shown / runs <= 0.52


def test_equivalent_and_ruled_out_are_those_of_a_single_claim() -> None:
    """Of 13 true effects as large as the margin, one or more is told as too small in a quarter of runs."""
    rng, runs, margin = np.random.default_rng(13), 400, 0.02
    wrong = [
        any(verdict(of_effect(rng, margin, 0.05), margin, 1.0) in ("equivalent", "ruled out") for _ in range(13))
        for _ in range(runs)
    ]
    assert 0.17 <= np.mean(wrong) <= 0.35


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_claim() -> None:
    rng = np.random.default_rng(3)
    wrong = sum(min(holm(list(rng.random(8)))) < 0.05 for _ in range(4_000))
    assert wrong / 4_000 < 0.06


@pytest.mark.parametrize(
    ("value", "half", "adjusted", "expected"),
    [
        (0.05, 0.01, 0.001, "supported"),
        (0.05, 0.04, 0.20, "inconclusive"),  # its own interval excludes 0, the others' company does not
        (0.00, 0.015, 0.9, "equivalent"),
        (0.01, 0.005, 0.001, "equivalent"),  # above 0, by less than matters
        (-0.05, 0.02, 0.001, "contradicted"),  # in the opposite direction
        (-0.05, 0.05, 0.05, "ruled out"),  # 0 is in the interval: no evidence of the opposite
        (-0.01, 0.02, 0.9, "ruled out"),  # no room for a difference of the margin
        (0.01, 0.05, 0.9, "inconclusive"),
        (-0.01, 0.05, 0.9, "inconclusive"),
    ],
)
def test_verdicts_of_each_kind(value: float, half: float, adjusted: float, expected: str) -> None:
    estimate = Estimate(
        value=value, low=value - half, high=value + half, p=adjusted, mde=2 * half, n=100, seeds=5, documents=50
    )
    assert verdict(estimate, 0.02, adjusted) == expected


def test_the_other_way_round() -> None:
    estimate = Estimate(value=0.1, low=0.05, high=0.15, p=0.01, mde=0.08, n=10, seeds=3, documents=5)
    assert estimate.negated == Estimate(value=-0.1, low=-0.15, high=-0.05, p=0.01, mde=0.08, n=10, seeds=3, documents=5)
    assert estimate.negated.negated == estimate
