"""How figures look."""

from __future__ import annotations

import pytest

from pipeline.report import style
from tests.pipeline.report.synthetic import BUDGETS


def test_methods_keep_their_looks_apart() -> None:
    looks = style.looks(["base", "sft", "ct", "ct_then_sft", *(f"merge_{place}" for place in range(18))])
    assert len({(look.color, look.line) for look in looks.values()}) == len(looks) == 20


@pytest.mark.parametrize("budgets", [BUDGETS, (10_000,), tuple(1_000 * 2**step for step in range(20))])
def test_dodged_points_stay_near_their_budget_and_in_order(budgets: tuple[int, ...]) -> None:
    moved = [style.dodge(budgets, place, 8) for place in range(8)]
    across = [line[place] for place in range(len(budgets)) for line in moved]
    assert across == sorted(across) and len(set(across)) == len(across)
    assert moved[0][0] < budgets[0] < moved[-1][0]
