"""What a model costs: hand-made stage records whose costs can be added up on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.report import stages
from pipeline.report.data import frame
from pipeline.report.records import Evaluation

DEVICES = {"device": "H100", "devices": 4, "tokens_per_second_per_device": 1.0}


def record(kind: str, key: str, seconds: float, parents: dict[str, str], **more: Any) -> dict[str, Any]:
    """parents: by role `kind key`."""
    made_of = {role: dict(zip(("kind", "key"), of.split(), strict=True)) for role, of in parents.items()}
    return {"kind": kind, "slug": f"nya-{key}", "key": key, "seconds": seconds, "parents": made_of, **more}


BLOCKS = {"model": "base b", "blocks": "sft_blocks sb"}
STAGES = [
    record("base", "b", 999, {}),
    record("ct", "ct1", 10, {"model": "base b", "blocks": "ct_blocks cb"}, amount=0.05, resumed_tokens=0),
    # the trunk continued 50k tokens, and its decay 380k
    record("ct", "trunk", 66, {"model": "base b", "blocks": "ct_blocks cb"}, amount=0.33, resumed_tokens=50_000),
    record("ct", "ct2", 14, {"model": "base b", "trunk": "ct trunk"}, amount=0.07, resumed_tokens=380_000),
    record("sft", "sft", 30, BLOCKS, amount=0.06, resumed_tokens=0),
    record("sft", "cts", 31, {"model": "ct ct2", "blocks": "sft_blocks sb"}, amount=0.06, resumed_tokens=0),
    record("tune", "t1", 500, {"ct": "ct ct1", "sft": "sft sft"}),
    record("merge", "m", 2, {"model": "base b", "ct": "ct ct2", "sft": "sft sft", "tune": "tune t1"}),
    record("eval", "e-ct", 99, {"checkpoint": "ct ct1", "items": "items i"}),
    record("eval", "e-sft", 99, {"checkpoint": "sft sft"}),
    record("eval", "e-cts", 99, {"checkpoint": "sft cts"}),
    record("eval", "e-m", 99, {"model": "base b", "ct": "ct ct2", "sft": "sft sft", "merge": "merge m"}),
    record("eval", "e-base", 99, {"checkpoint": "base b"}),
    record("eval", "e-lost", 99, {"checkpoint": "ct gone"}),
]


def evaluation(method: str, budget: int, key: str, seed: int = 0) -> Evaluation:
    return Evaluation(method, budget, seed, Path("store/eval") / f"nya-{key}-{key}")


EVALUATIONS = [
    evaluation("base", 0, "e-base"),
    evaluation("sft", 0, "e-sft"),
    evaluation("ct", 50_000, "e-ct"),
    evaluation("ct", 450_000, "e-lost"),
    evaluation("ct_then_sft", 450_000, "e-cts"),
    evaluation("ties", 450_000, "e-m"),
    evaluation("given", 450_000, "nowhere"),
]


def test_costs_are_those_of_trainings_and_merges_alone() -> None:
    found = stages.costs(EVALUATIONS, STAGES)
    ct2 = 14 * (70 + 380) / 70  # as if the decay had trained all of the 450k tokens
    assert set(found) == {("sft", 0), ("ct", 50_000), ("ct_then_sft", 450_000), ("ties", 450_000)}
    expected = {
        ("sft", 0): (0, 0, 30, 60_000),
        ("ct", 50_000): (10, 50_000, 0, 0),
        ("ct_then_sft", 450_000): (ct2 + 31, 510_000, 0, 0),
        ("ties", 450_000): (ct2 + 2, 450_000, 30, 60_000),
    }
    for cell, numbers in expected.items():
        assert tuple(vars(found[cell]).values()) == pytest.approx(numbers), cell


def test_seconds_are_of_one_device_and_means_over_seeds() -> None:
    other = [
        {**one, "key": one["key"] + "x", "performance": DEVICES} if one["key"] == "ct1" else one
        for one in STAGES
        if one["key"] in ("ct1", "b")
    ]
    other.append(record("eval", "e-other", 9, {"checkpoint": "ct ct1x"}))
    both = [evaluation("ct", 50_000, "e-ct"), evaluation("ct", 50_000, "e-other", seed=1)]
    cost = stages.costs(both, [*STAGES, *other])["ct", 50_000]
    assert cost.seconds == pytest.approx((10 + 4 * 10) / 2) and cost.tokens == 50_000


def test_what_merging_saves_is_a_sentence() -> None:
    tradeoff = frame(
        ("method", "tokens", "bits", "accuracy"),
        [("sft", 0, 2.6, 0.3), ("ct_then_sft", 450_000, 2.0, 0.4), ("ties", 450_000, 1.9, 0.35)],
    )
    costs = stages.costs(EVALUATIONS, STAGES)
    found = stages.prices(tradeoff, costs)
    assert found.unit == "minutes" and list(found.table.method) == ["sft", "ct_then_sft", "ties"]
    assert found.sentence == (
        "At 450k tokens and beyond the English SFT, CT-then-SFT took 2.02 minutes and trained on 510,000 tokens. "
        "A merge took 1.53 minutes and trained on 450,000 tokens (mean of TIES)."
    )
    without_merges = stages.prices(tradeoff, {cell: cost for cell, cost in costs.items() if cell[0] != "ties"})
    assert without_merges.table.empty and without_merges.sentence == ""
