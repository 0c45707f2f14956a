"""Every verdict can be met and can fail, and follows the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import report
from pipeline.report import builtin_claims, claims, merges
from pipeline.report.analysis import Inputs
from pipeline.report.paired import Evidence
from pipeline.report.records import Evaluation
from tests.pipeline.report.synthetic import BUDGETS, GOOD, INFO, LOST, Run, write_scores

IDS = [claim.id for claim, _ in builtin_claims.STATED]
SEEDS = (0, 1, 2)
WOBBLE = (0.06, -0.06, 0.03)  # what three seeds differ by


def verdicts(run: Run) -> dict[str, str]:
    return dict(zip(IDS, run.verdicts(), strict=True))


def test_what_holds_is_supported(tmp_path: Path) -> None:
    assert verdicts(Run(tmp_path, GOOD, LOST)) == dict.fromkeys(IDS, "supported")


def test_the_opposite_of_a_claim_contradicts_it(tmp_path: Path) -> None:
    flipped = Run(
        tmp_path,
        {"ties": (-0.2, -0.1, 0.1), "ties_sv_1": (-0.3, -0.2, 0.05)},
        {"ties": (0.3, 0.2, 0.1), "ties_sv_1": (0.6, 0.4, 0.2)},
        without_ct=0.3,
    )
    assert verdicts(flipped) == dict.fromkeys(IDS, "contradicted")
    assert all(answer.estimate is not None and answer.estimate.high < 0 for answer in flipped.claims().answers)


def test_what_is_the_same_is_equivalent(tmp_path: Path) -> None:
    level = Run(
        tmp_path,
        {"ties": (0.0,) * 3, "ties_sv_1": (0.0,) * 3},
        {"ties": (0.0, 0.2, 0.0), "ties_sv_1": (0.0, 0.2, 0.0)},
    )
    assert verdicts(level) == dict.fromkeys(IDS, "equivalent")


def test_what_seeds_disagree_about_is_inconclusive(tmp_path: Path) -> None:
    small = {"ties": (0.02, 0.02, 0.02), "ties_sv_1": (0.04, 0.04, 0.04)}
    lost = {"ties": (0.4, 0.41, 0.42), "ties_sv_1": (0.38, 0.39, 0.4)}
    assert verdicts(Run(tmp_path, small, lost, SEEDS, WOBBLE)) == dict.fromkeys(IDS, "inconclusive")


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, GOOD, LOST, seeds=(0,))
    assert verdicts(run) == dict.fromkeys(IDS, "inconclusive")
    assert {one.verdict for one in run.claims().comparisons} == {"inconclusive"}


def test_slack_is_compared_at_equal_settings_only(tmp_path: Path) -> None:
    apart = verdicts(Run(tmp_path, GOOD, LOST, lambdas={"ties": 1.0}))
    assert {name for name, verdict in apart.items() if verdict == "no data"} == {
        "slack-keeps",
        "slack-accuracy",
        "slack-answer-bits",
    }


def test_conflicts_grow_by_ct_and_not_by_what_dev_chose(tmp_path: Path) -> None:
    """TIES that gives up more because its settings are others at the largest budget says nothing of CT."""
    run = Run(tmp_path, {}, {"ties": (0.1, 0.2, 0.3), "ties_fixed": (0.1, 0.1, 0.1)})
    for audit in run.audits:
        if audit.method in ("ties", "ties_at_norm") and audit.ct_tokens == BUDGETS[-1]:
            recipe = audit.folder / "merge.yml"
            recipe.write_text(recipe.read_text().replace("density: 0.5", "density: 0.9"))
    grow = dict(zip(IDS, run.claims().answers, strict=True))["conflicts-grow"]
    assert grow.verdict == "equivalent" and grow.estimate is not None and grow.estimate.value == 0
    assert "TIES: " not in grow.text
    run.audits = [audit for audit in run.audits if not audit.method.startswith("ties_fixed")]
    assert dict(zip(IDS, run.verdicts(), strict=True))["conflicts-grow"] == "no data"


def test_claims_state_the_numbers(tmp_path: Path) -> None:
    answers = dict(zip(IDS, Run(tmp_path, GOOD, LOST).claims().answers, strict=True))
    scarce = answers["scarce-accuracy"]
    assert scarce.estimate is not None and scarce.estimate.value == pytest.approx(0.3)
    assert (scarce.estimate.n, scarce.estimate.seeds, scarce.estimate.documents) == (400, 2, 50)
    assert scarce.estimate.low > 0.2 and 0 < scarce.estimate.mde < 0.2
    assert "At 10k tokens" in scarce.text and "TIES + slack 1, has 0.750; CT-then-SFT has 0.450." in scarce.text
    shrinks = answers["advantage-shrinks"]
    assert shrinks.estimate is not None and shrinks.estimate.value == pytest.approx(0.2)
    assert "10k +0.300 (95% CI " in shrinks.text and "1M +0.100 (95% CI " in shrinks.text
    assert "TIES: 10.0% at 10k, 20.0% at 100k, 30.0% at 1M" in answers["conflicts-grow"].text
    assert "slack" not in answers["conflicts-grow"].text
    assert "TIES + slack 1: 5.0% at 10k" in answers["slack-keeps"].text
    slack = answers["slack-answer-bits"]
    assert slack.estimate is not None and slack.estimate.value == pytest.approx(0.1)


def test_the_best_merge_on_dev_is_another_at_another_budget(tmp_path: Path) -> None:
    """Settings are chosen by the mean over budgets; which merge leads at a budget is said by its scores there."""
    run = Run(tmp_path, GOOD, {})
    at_budgets = {"ties": (0.9, 0.5, 0.2), "ties_sv_1": (0.4, 0.6, 0.8)}  # the mean of ties_sv_1 is higher
    judged = [replace(choice, judged=BUDGETS) for choice in run.choices]
    for choice in judged:
        path, scores = choice.folder / "tries.jsonl", at_budgets[choice.method]
        rows = [json.loads(line) | {"score": sum(scores) / 3, "scores": scores} for line in path.open()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen, evidence = merges.read_choices(judged), Evidence(run.evaluations, "nya")
    assert [builtin_claims.leader_at(budget, chosen, evidence) for budget in BUDGETS] == [
        "ties",
        "ties_sv_1",
        "ties_sv_1",
    ]
    assert builtin_claims.leader_at(BUDGETS[0], merges.read_choices(run.choices), evidence) == "ties_sv_1"


def test_families_are_told_apart(tmp_path: Path) -> None:
    text = next(iter(Run(tmp_path, GOOD, LOST).claims().answers)).text
    assert "By task: blank +0.300 (95% CI " in text and "; genre +0.300 (95% CI " in text


def test_claims_without_their_data_say_so(tmp_path: Path) -> None:
    folder = write_scores(tmp_path / "base", {"genre": 0.3}, 5.0)
    answered = builtin_claims.answer_all([Evaluation("base", 10_000, 0, folder)], [], [], "nya")
    assert [answer.verdict for answer in answered.answers] == ["no data"] * len(IDS) and answered.comparisons == []
    paths = report.render(Inputs(info=INFO, evaluations=[Evaluation("base", 10_000, 0, folder)]), tmp_path / "out")
    rows = json.loads(paths.claims.read_text())
    assert [row["verdict"] for row in rows] == ["no data"] * len(IDS) and rows[0]["effect"] is None


def test_claims_json_has_a_row_a_claim(tmp_path: Path) -> None:
    rows = claims.as_json(Run(tmp_path, GOOD, LOST).claims().answers)
    assert [row["id"] for row in rows] == IDS and len(set(IDS)) == len(IDS)
    wanted = {"id", "claim", "source", "statistic", "threshold", "effect", "low", "high", "n", "mde", "verdict"}
    for row in rows:
        assert wanted <= row.keys() and row["low"] <= row["effect"] <= row["high"]
        assert row["p"] <= row["p_adjusted"] <= 1 and row["margin"] > 0
    json.dumps(rows, allow_nan=False)


def test_claims_of_an_older_version_are_read_by_the_new_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = claims.as_json(Run(tmp_path, GOOD, LOST).claims().answers)
    path = tmp_path / "claims.json"
    path.write_text(json.dumps(rows))
    assert claims.read(path) == rows and not capsys.readouterr().err
    old = [
        {("mdd" if key == "mde" else key): value for key, value in row.items()} | {"verdict": "shown"} for row in rows
    ]
    path.write_text(json.dumps(old))
    assert claims.read(path) == rows, "every claim of these rows is supported"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "not shown = ruled out" in said and "mdd = mde" in said


def test_more_claims_ask_for_more(tmp_path: Path) -> None:
    answers = Run(tmp_path, GOOD, LOST, SEEDS, WOBBLE).claims().answers
    estimates = [(answer.estimate.p, answer.p_adjusted) for answer in answers if answer.estimate is not None]
    assert len(estimates) == len(IDS)
    smallest, adjusted = min(estimates, key=lambda pair: pair[0])
    assert adjusted == pytest.approx(min(1.0, len(IDS) * smallest))
