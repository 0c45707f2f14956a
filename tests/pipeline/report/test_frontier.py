"""The gap of two frontiers: known answers, what dev decides, and simulated coverage."""

from __future__ import annotations

from dataclasses import replace
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import bdtr

from pipeline.report.frontier import Frontiers, Gap, gap_terms, hat_weights, matching_value, pairs, price_of_tie
from pipeline.report.hypothesis_answers import judged_at
from pipeline.report.inference import LEVEL, Estimate, holm, levels, verdict
from pipeline.report.paired import Evidence
from pipeline.report.records import Evaluation, FrontierPoint
from tests.pipeline.report import frontier_world
from tests.pipeline.report.points import DOCUMENTS, frontier, point, share, write

BUDGET = 450_000


def line(bits: float, above: float = 0.0) -> tuple[float, float]:
    """A point on a line of 0.25 accuracy per bit, in whole items."""
    return bits, 0.3 + 0.25 * (bits - 2.0) + above


def gap(points: list[FrontierPoint], first: str = "ties", second: str = "ct_then_sft", **more: Any) -> Gap:
    return Frontiers(points, "nya").gap(first, second, BUDGET, **more)


def test_equal_lines_have_no_gap_whatever_their_knobs(tmp_path: Path) -> None:
    first = frontier(tmp_path, "ties", [line(x) for x in (2.0, 2.2, 2.4)])
    second = frontier(tmp_path, "ct_then_sft", [line(x) for x in (2.1, 2.14, 2.3, 2.5)])
    found = gap(first + second)
    assert found.window == pytest.approx((2.1, 2.4)) and found.estimate is not None and found.slip is not None
    assert found.estimate.value == pytest.approx(0, abs=1e-12) and found.slip.value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("one", "other"), [((2.0, 2.4), (2.0, 2.4)), ((2.0, 2.2, 2.4), (1.96, 2.1, 2.3, 2.36))])
def test_parallel_lines_have_their_distance(tmp_path: Path, one: tuple[float, ...], other: tuple[float, ...]) -> None:
    points = frontier(tmp_path, "ties", [line(x, 0.03) for x in one])
    points += frontier(tmp_path, "ct_then_sft", [line(x) for x in other])
    found, swapped = gap(points), gap(points, "ct_then_sft", "ties")
    assert found.estimate is not None and found.estimate.value == pytest.approx(0.03)
    assert swapped.estimate is not None and swapped.estimate.value == pytest.approx(-0.03)
    assert (swapped.estimate.low, swapped.estimate.high) == pytest.approx((-found.estimate.high, -found.estimate.low))
    assert judged_at(found.estimate, 0.02, LEVEL, LEVEL) == "supported"
    assert judged_at(swapped.estimate, 0.02, LEVEL, LEVEL) == "contradicted"


def test_weights_are_the_integral_of_straight_lines() -> None:
    bits, values = [2.0, 2.2, 2.6], np.array([0.3, 0.4, 0.5])
    weights = hat_weights(bits, 2.1, 2.4)
    # by hand: from (2.1, 0.35) to (2.2, 0.4) the mean is 0.375 over 0.1, to (2.4, 0.45) it is 0.425 over 0.2
    assert weights @ values == pytest.approx((0.1 * 0.375 + 0.2 * 0.425) / 0.3)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    assert hat_weights(bits, 2.1, 2.1) == pytest.approx([0.5, 0.5, 0.0])
    assert hat_weights([2.0, 2.6], 2.0, 2.6) == pytest.approx([0.5, 0.5])
    twice = hat_weights([2.2, 2.0, 2.2, 2.6], 2.1, 2.4)  # in any order, with equal bits
    assert twice[[1, 0, 3]] * [1, 2, 1] == pytest.approx(weights) and twice[0] == twice[2]


@pytest.mark.parametrize(
    ("most", "window", "used"),
    [
        (2.3, (2.1, 2.3), {"λ 1", "λ 2", "λ 3"}),  # between knob values
        (2.2, (2.1, 2.2), {"λ 1", "λ 2"}),  # at one
        (2.6, (2.1, 2.4), {"λ 1", "λ 2", "λ 3"}),  # beyond the last
    ],
)
def test_the_window_is_what_both_cover(
    tmp_path: Path, most: float, window: tuple[float, float], used: set[str]
) -> None:
    points = frontier(tmp_path, "ties", [line(x) for x in (2.0, 2.2, 2.4)])
    points += frontier(tmp_path, "ct_then_sft", [line(x) for x in (2.1, most)])
    found = gap(points)
    assert found.window == pytest.approx(window)
    assert set(found.weights[0]) == used and sum(found.weights[0].values()) == pytest.approx(1)


@pytest.mark.parametrize(("span", "counts"), [(0.05, True), (0.049, False)])
def test_a_window_spans_enough_or_does_not_count(tmp_path: Path, span: float, counts: bool) -> None:
    points = frontier(tmp_path, "ties", [line(2.0), line(2.2)])
    points += frontier(tmp_path, "ct_then_sft", [line(2.2 - span), line(2.5)])
    found = gap(points)
    assert (found.window is not None, found.estimate is not None, found.separate is None) == (counts,) * 3


def test_separate_frontiers_have_a_bound_or_a_price(tmp_path: Path) -> None:
    right = frontier(tmp_path, "ct_then_sft", [(2.4, 0.35), (2.6, 0.4)])
    better = gap(frontier(tmp_path, "ties", [(2.0, 0.35), (2.2, 0.45)]) + right)
    assert better.estimate is None and better.separate is not None and not better.separate.falls
    assert (better.separate.left, better.separate.right) == ("ties", "ct_then_sft")
    assert (better.separate.accuracy.value, better.separate.bits.value) == pytest.approx((0.1, 0.2))
    traded = gap(frontier(tmp_path, "linear", [(2.0, 0.2), (2.2, 0.25)]) + right, "linear").separate
    assert traded is not None and traded.tie[0] == pytest.approx(0.1 / 0.2)
    assert 0.4 < traded.tie[1] < 0.5 < traded.tie[2] < 0.6
    other_way = gap(frontier(tmp_path, "linear", [(2.0, 0.2), (2.2, 0.25)]) + right, "ct_then_sft", "linear")
    assert other_way.separate == traded


def test_fiellers_interval_is_the_prices_that_do_not_differ_from_a_tie() -> None:
    def estimate(value: float, error: float) -> Estimate:
        return Estimate(value=value, low=0, high=0, p=0, mde=0, n=1, seeds=5, documents=9, error=error, dof=20.0).at(
            LEVEL
        )

    accuracy, bits = estimate(-0.04, 0.01), estimate(0.2, 0.03)
    value, low, high = price_of_tie(accuracy, bits, estimate(0.16, (0.01**2 + 0.03**2) ** 0.5), 20.0)
    assert value == pytest.approx(0.2) and low < 0.2 < high
    for price in (low, high):  # the ends differ from a tie by exactly the critical value
        worth = estimate(-0.04 + price * 0.2, (0.01**2 + (price * 0.03) ** 2) ** 0.5)
        assert min(abs(worth.low), abs(worth.high)) == pytest.approx(0, abs=1e-12)
    unclear = price_of_tie(accuracy, estimate(0.02, 0.03), estimate(-0.02, 0.03), 20.0)
    assert isinf(unclear[1]) and isinf(unclear[2])


def noisy(rng: Any, root: Path, method: str, knob: float, bits: float, right: Any, seed: int = 0) -> FrontierPoint:
    """A point whose dev and test answers are given, (2, items)."""
    folder = root / f"{method}-{knob}-{seed}"
    noise = rng.normal(0, 0.05, DOCUMENTS)
    for split, answers in zip(("dev", "test"), right, strict=True):
        write(folder / split, {"next": answers}, list(bits + noise - noise.mean()))
    return FrontierPoint(
        method=method,
        ct_tokens=BUDGET,
        seed=seed,
        settings={"lambda": knob},
        dev=folder / "dev",
        folder=folder / "test",
    )


@pytest.mark.parametrize(("errors", "pruned"), [(3.0, True), (1.0, False)])
def test_a_clearly_dominated_point_is_pruned_by_dev(tmp_path: Path, errors: float, pruned: bool) -> None:
    rng = np.random.default_rng(3)
    items = 400
    good = (rng.random(items) < 0.5).astype(float)
    # of 100 answers that differ, so many more are worse than better that the mean is some errors of 10 / 400 away
    differ, worse = rng.permutation(items)[:100], round(50 + 5 * errors)
    bad = good.copy()
    good[differ[:worse]], bad[differ[:worse]] = 1.0, 0.0
    good[differ[worse:]], bad[differ[worse:]] = 0.0, 1.0
    shuffled = rng.permutation(good)
    found = []
    for name, test in (("own", (good, bad)), ("shuffled", (shuffled, shuffled[::-1]))):
        points = [
            noisy(rng, tmp_path / name, "ties", 1, 2.1, (good, test[0])),
            noisy(rng, tmp_path / name, "ties", 2, 2.3, (bad, test[1])),
            noisy(rng, tmp_path / name, "ties", 3, 2.4, (np.ones(items), good)),
        ]
        found.append([point.pruned for point in Frontiers(points, "nya").curve("ties", BUDGET, {0})])
    assert found == [[False, pruned, False]] * 2
    assert not Frontiers(points, "nya").curve("ties", BUDGET, {0})[0].pruned, "of fewer bits than its better rival"


def random_points(root: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> list[FrontierPoint]:
    rng = np.random.default_rng(5)
    return [
        noisy(rng, root, method, knob, 2 + 0.2 * knob + shift, rng.random((2, 400)) < 0.3 + 0.1 * knob, seed)
        for method, shift in (("ties", 0.0), ("ct_then_sft", 0.1))
        for knob in (0.5, 1, 1.5)
        for seed in seeds
    ]


def test_the_order_of_anything_changes_nothing(tmp_path: Path) -> None:
    points = random_points(tmp_path)
    before = gap(points)
    for point_ in points[:6]:  # items and documents in another order, in some of the files
        for folder in (point_.dev, point_.folder):
            lines = (folder / "samples.jsonl").read_text().splitlines()
            (folder / "samples.jsonl").write_text("".join(f"{line}\n" for line in reversed(lines)))
    after = gap(points[::-1])
    assert before.estimate is not None and after.estimate is not None and before.slip and after.slip
    for name in ("value", "low", "high", "p"):
        assert getattr(after.estimate, name) == pytest.approx(getattr(before.estimate, name), abs=1e-12)
    doubled = gap([*points, *points[:3], replace(points[0], settings={"lambda": "0.50"})])
    assert doubled == before
    other_name = gap(
        [*points, *(replace(one, settings={"lambda": 9}) for one in points if one.settings["lambda"] == 1)]
    )
    assert other_name.estimate is not None and other_name.estimate.value == pytest.approx(before.estimate.value)


def test_one_seed_decides_nothing_and_only_shared_seeds_count(tmp_path: Path) -> None:
    points = random_points(tmp_path)
    one = gap(points, seeds=[0]).estimate
    assert one is not None and one.seeds == 1 and judged_at(one, 10.0, LEVEL, LEVEL) == "inconclusive"
    lacking = [each for each in points if (each.method, each.seed, each.settings["lambda"]) != ("ties", 2, 1)]
    shared, asked = gap(lacking).estimate, gap(points, seeds=(0, 1, 7)).estimate
    assert shared == asked and shared is not None and shared.seeds == 2
    apart = [each for each in points if (each.method == "ties") == (each.seed == 0)]
    assert gap(apart).missing == "Not computed: the knob values of both methods share no seed."
    assert "eval.frontier=all" in gap(points[:9]).missing


def test_identical_models_are_equivalent_only_within_the_rule_of_three(tmp_path: Path) -> None:
    found = gap(
        frontier(tmp_path, "ties", [line(2.0), line(2.4)], (0, 1, 2))
        + frontier(tmp_path, "ct_then_sft", [line(2.0), line(2.4)], (0, 1, 2))
    ).estimate
    assert found is not None and (found.low, found.high) == pytest.approx((-3 / 400, 3 / 400), rel=0.01)
    assert (
        judged_at(found, 0.02, LEVEL, LEVEL) == "equivalent" and judged_at(found, 0.005, LEVEL, LEVEL) == "inconclusive"
    )


def test_one_point_each_is_the_paired_difference(tmp_path: Path) -> None:
    points = [each for each in random_points(tmp_path) if each.settings == {"lambda": 1}]
    evaluations = [Evaluation(each.method, BUDGET, each.seed, each.folder) for each in points]
    cells = [("ties", BUDGET), ("ct_then_sft", BUDGET)]
    evidence = Evidence(evaluations, "nya")
    paired = evidence.difference("accuracy", [cells[0]], [cells[1]])
    assert evidence.combination(gap_terms([(cells[0], 1.0)], [(cells[1], 1.0)], price=0.0)) == paired


def test_bits_correct_for_what_matching_missed(tmp_path: Path) -> None:
    """Equal lines of the price's slope, of which one lies 0.01 bits further right on test than on dev."""
    places = [(2.0, 0.3), (2.4, 0.4)]
    shifted = [
        point(tmp_path, "ties", knob, bits + 0.01, accuracy + 0.0025, seed=seed, dev=(bits, accuracy))
        for knob, (bits, accuracy) in enumerate(places)
        for seed in (0, 1)
    ]
    points = shifted + frontier(tmp_path, "ct_then_sft", places)
    corrected, raw = gap(points, price=0.25), gap(points, price=0.0)
    assert corrected.estimate is not None and corrected.estimate.value == pytest.approx(0, abs=1e-12)
    assert raw.estimate is not None and raw.estimate.value == pytest.approx(0.0025)
    assert corrected.slip is not None and corrected.slip.value == pytest.approx(0.01) and not corrected.slipped


def test_bits_and_answers_of_a_document_move_together(tmp_path: Path) -> None:
    """A text's document is its id, which items name: where both move against each other, utility does not vary."""
    rng = np.random.default_rng(1)
    right = np.repeat(rng.random((1, DOCUMENTS)) < 0.5, 10, axis=0).ravel().astype(float)  # whole documents
    one = write(tmp_path / "one", {"next": right}, list(2 + right[:DOCUMENTS]))
    other = write(tmp_path / "other", {"next": np.zeros(400)}, [2.0] * DOCUMENTS)
    sides = [Evaluation(name, 1, 0, folder) for name, folder in (("a", one), ("b", other))]
    terms = [[(("a", 1), 1.0)], [(("b", 1), 1.0)]]
    found = Evidence(sides, "nya").combination(gap_terms(terms[0], terms[1], price=1.0))
    assert found is not None and found.documents == DOCUMENTS
    assert found.value == pytest.approx(0) and found.error == pytest.approx(1.53 / 400)  # the rule of three's


def test_families_have_their_own_gap_and_non_latin_names(tmp_path: Path) -> None:
    points = []
    for method, above in (("ties", 0.05), ("ct_then_sft", 0.0)):
        for seed in (0, 1):
            for knob, bits in enumerate((2.0, 2.2)):
                folder = tmp_path / f"{method}-{knob}-{seed}"
                for split in ("dev", "test"):
                    right = {"ቀጣይ": share(0.4 + above), "类型": share(0.5 - above)}
                    write(folder / split, right, [bits] * DOCUMENTS)
                points.append(
                    FrontierPoint(
                        method=method,
                        ct_tokens=BUDGET,
                        seed=seed,
                        settings={"lambda": knob},
                        dev=folder / "dev",
                        folder=folder / "test",
                    )
                )
    found = gap(points, by_family=True)
    assert found.estimate is not None and found.estimate.value == pytest.approx(0, abs=1e-12)
    assert found.families is not None
    values = {name: estimate.value for name, estimate in found.families.items()}
    assert values == pytest.approx({"ቀጣይ": 0.05, "类型": -0.05})


def test_pairs_are_those_that_are_asked_then_merges_minus_ct_then_sft() -> None:
    methods = ["ct_then_sft", "ties", "linear"]
    asked = [("ct_then_sft", "ties"), ("ties", "unknown")]
    assert pairs(methods, asked) == [("ct_then_sft", "ties"), ("linear", "ct_then_sft")]
    assert pairs(["a/ties", "a/ct_then_sft", "b/ties"]) == [("a/ties", "a/ct_then_sft")]


RUNS = 400
UNLIKELY = 0.001  # that one of the tests of simulated runs fails although the true rate is at its limit


def most_of(rate: float) -> int:
    """The largest count in RUNS runs that a true rate gives, but for one time in a thousand."""
    return next(count for count in range(RUNS + 1) if bdtr(count, RUNS, rate) >= 1 - UNLIKELY)


@pytest.fixture(scope="module")
def simulated() -> dict[int, list[Estimate]]:
    """Runs with no true gap, by number of seeds; docs/explanation/statistics.md has the numbers of more of them."""
    return {seeds: frontier_world.estimates(seeds, RUNS, seed=seeds) for seeds in (3, 5, 10)}


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_of_gaps_cover_the_truth(simulated: dict[int, list[Estimate]], seeds: int) -> None:
    """In 93 to 98% of runs."""
    missed = sum(not estimate.low <= 0 <= estimate.high for estimate in simulated[seeds])
    assert RUNS - most_of(0.98) <= missed <= most_of(0.07)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_eight_claims_are_rarely_decided_wrongly(simulated: dict[int, list[Estimate]], seeds: int) -> None:
    """Equal frontiers are told apart among eight claims in at most 7% of reports: each at Holm's first level."""
    assert levels([0.001] + [1.0] * 7)[0] == LEVEL / 8
    wrong = sum(estimate.p < LEVEL / 8 for estimate in simulated[seeds])
    assert wrong <= most_of(0.07 / 8)


@pytest.mark.parametrize("seeds", [5, 10])
def test_a_gap_of_the_mde_is_detected_four_times_in_five(simulated: dict[int, list[Estimate]], seeds: int) -> None:
    mde = np.mean([estimate.mde for estimate in simulated[seeds]])
    detected = sum(estimate.low + mde > 0 for estimate in simulated[seeds])
    assert RUNS - most_of(0.25) <= detected <= most_of(0.85)


@pytest.mark.parametrize(
    ("low", "high", "level", "expected"),
    [
        (-0.015, 0.015, LEVEL, "equivalent"),
        (0.005, 0.015, LEVEL, "equivalent"),
        (0.01, 0.05, LEVEL, "supported"),
        (0.001, 0.059, LEVEL / 8, "inconclusive"),  # above 0 by its own interval, not by Holm's
        (-0.05, -0.01, LEVEL, "contradicted"),
        (-0.059, -0.001, LEVEL / 8, "ruled out"),
        (-0.05, 0.01, LEVEL, "ruled out"),
        (-0.03, 0.018, LEVEL / 8, "inconclusive"),
        (-0.01, 0.05, LEVEL, "inconclusive"),
    ],
)
def test_each_verdict_by_its_interval_at_its_level(low: float, high: float, level: float, expected: str) -> None:
    error = (high - low) / 2 / 1.959964
    value = (low + high) / 2
    estimate = Estimate(value=value, low=low, high=high, p=0, mde=0, n=800, seeds=5, documents=118, error=error)
    estimate = replace(estimate, p=min(estimate.p_above(0), estimate.negated.p_above(0)))
    assert (estimate.at(LEVEL).low, estimate.at(LEVEL).high) == pytest.approx((low, high))
    assert judged_at(estimate, 0.02, level, level) == expected
    assert level != LEVEL or verdict(estimate, 0.02, estimate.p) == expected


def test_equivalence_is_not_among_holms_steps() -> None:
    """Of two claims, the level of a difference rises after the other differs; that of the margin stays."""
    near = Estimate(value=0.001, low=0, high=0, p=0.92, mde=0, n=800, seeds=5, documents=118, error=0.0094)
    assert near.at(LEVEL).high < 0.02 < near.at(LEVEL / 2).high
    assert judged_at(near, 0.02, LEVEL, LEVEL / 2) == "inconclusive"
    far = Estimate(value=-0.02, low=0, high=0, p=0.033, mde=0, n=800, seeds=5, documents=118, error=0.0094)
    assert judged_at(far, 0.02, LEVEL, LEVEL / 2) == "contradicted"
    assert judged_at(far, 0.02, LEVEL / 2, LEVEL / 2) == "ruled out"


def test_levels_are_those_of_holms_steps() -> None:
    ps = [0.02, 0.001, 0.3, 0.04]
    assert levels(ps) == pytest.approx([0.05 / 3, 0.05 / 4, 0.05 / 3, 0.05 / 3])
    assert [p < level for p, level in zip(ps, levels(ps), strict=True)] == [p < LEVEL for p in holm(ps)]
    assert levels([]) == [] and levels([0.01, 0.02, 0.03]) == pytest.approx([0.05 / 3, 0.05 / 2, 0.05])


def test_equivalence_among_holms_steps_would_tell_equal_methods_apart() -> None:
    """Why it has a level of its own: eight equal pairs, with errors of a quarter of the margin."""
    rng, reports, wrong, by_steps = np.random.default_rng(2), 500, 0, 0
    for _ in range(reports):
        drawn = [
            Estimate(value=value, low=0, high=0, p=0, mde=0, n=800, seeds=5, documents=118, error=0.005)
            for value in rng.normal(0, 0.005, 8)
        ]
        drawn = [replace(each, p=min(each.p_above(0), each.negated.p_above(0))) for each in drawn]
        own = levels([each.p for each in drawn])
        equivalent = [max(each.p_above(-0.02), each.negated.p_above(-0.02)) for each in drawn]  # within the margin
        mixed = levels([min(each.p, within) for each, within in zip(drawn, equivalent, strict=True)])
        apart = {"supported", "contradicted"}
        wrong += any(judged_at(each, 0.02, at, LEVEL / 8) in apart for each, at in zip(drawn, own, strict=True))
        by_steps += any(judged_at(each, 0.02, at, at) in apart for each, at in zip(drawn, mixed, strict=True))
    assert wrong / reports <= 0.07 and by_steps / reports >= 0.2


def test_a_knob_value_of_the_same_bits_is_found_or_not_reachable(tmp_path: Path) -> None:
    assert matching_value([1, 2, 3], [2.0, 2.2, 2.3], 2.1) == pytest.approx(1.5)
    assert matching_value([3, 1, 2], [2.0, 2.0, 2.2], 2.1) == pytest.approx(2.5), "the larger of two"
    assert matching_value([1, 2], [2.0, 2.0], 2.0) == 2
    assert matching_value([1, 2, 3], [2.0, 2.2, 2.3], 2.4) is None
    points = frontier(tmp_path, "ties", [line(x) for x in (2.0, 2.2, 2.4)])
    points += frontier(tmp_path, "ct_then_sft", [line(x) for x in (2.1, 2.5)], key="learning_rate")
    frontiers = Frontiers(points, "nya")
    found = frontiers.matching("ct_then_sft", "ties", BUDGET)
    assert found == {"rate 1": pytest.approx(1.5), "rate 2": None}
    words = [replace(each, settings={"norm": "ct"}) if each.settings == {"lambda": 1} else each for each in points]
    assert Frontiers(words, "nya").matching("ct_then_sft", "ties", BUDGET) == {}
