"""Gates of a base, on made-up scores."""

from __future__ import annotations

from dataclasses import replace

from pipeline.report.data import gates
from pipeline.report.gates import in_words
from pipeline.report.lm_eval_folder import Row

SCORES = {  # (language, family, method): accuracy
    ("nya", "next", "base"): 0.30,
    ("nya", "next", "ct"): 0.41,
    ("nya", "next", "sft"): 0.30,
    ("nya", "next", "target_sft"): 0.45,
    ("nya", "blank", "sft"): 0.25,
    ("nya", "blank", "target_sft"): 0.34,
    ("en", "next", "sft"): 0.70,
    ("en", "blank", "sft"): 0.10,
}


def rows(scores: dict[tuple[str, str, str], float] = SCORES) -> list[Row]:
    made = []
    for (language, family, method), value in scores.items():
        tokens = 0 if method in ("base", "sft") else 600_000
        score = Row(
            language, f"{family}_{language}", "acc", method, tokens, 0, value, value, value, 100, 0.25, 0.2, family,
            True, None,
        )  # fmt: skip
        made += [score, replace(score, metric="answer_bits_per_byte", primary=False, value=9.0)]
        if method == "ct":  # a smaller budget is not asked
            made.append(replace(score, ct_tokens=1_000, value=0.0))
    return made


def test_families_without_room_leave_and_the_rest_is_judged() -> None:
    answers = {(gate.kind, gate.family): (round(gate.value, 2), gate.passed) for gate in gates(rows(), "nya")}
    assert answers == {
        ("learns", "next"): (0.11, True),
        ("room", "next"): (0.15, True),
        ("room", "blank"): (0.09, False),
        ("skill", "next"): (0.70, True),  # of the families kept only
    }


def test_seeds_are_averaged() -> None:
    both = [*rows(), *(replace(row, seed=1, value=row.value - 0.08) for row in rows() if row.method == "ct")]
    learns = next(gate for gate in gates(both, "nya") if gate.kind == "learns")
    assert (round(learns.value, 2), learns.passed) == (0.07, False)
    assert "FAILED" in in_words([learns])[0]


def test_without_a_ceiling_nothing_is_asked() -> None:
    assert gates([row for row in rows() if row.method != "target_sft"], "nya") == []
