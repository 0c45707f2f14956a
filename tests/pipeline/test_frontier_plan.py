"""Every setting of every knob is scored on dev and on test, and none is chosen: the plan of `eval.frontier=all`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import BadInput
from pipeline import sweep
from pipeline.run import collect
from pipeline.stages.cell import Cell, merged, plan_cell
from pipeline.stages.stage import Inputs

RATES = "sft.grid={learning_rate:[5e-4,2e-4]}"


def cells(*overrides: str) -> list[Cell]:
    configs = sweep.expand(["experiment=test", RATES, *overrides], multirun=True).configs
    return [plan_cell(config, Inputs()) for config in configs]


def test_all_settings_are_scored_on_both_splits_and_none_is_chosen() -> None:
    (cell, *_) = cells("eval.frontier=all")
    assert [point.settings for point in cell.frontier["ct_then_sft"]] == [
        {"learning_rate": rate} for rate in (5e-4, 2e-4)
    ]
    assert [set(point.settings) for point in cell.frontier["ties_sv_1"]] == [{"density"}] * 2, "the knob alone"
    assert not cell.chosen and not any(stage.kind == "tune" for stage in cell.stages)
    for method, points in cell.frontier.items():
        assert points[0].test is cell.evals[method], "the first setting is the method's own row of the results"
        for point in points:
            assert (point.dev.settings.split, point.test.settings.split) == ("dev", "test")
            assert point.dev.settings.limit == cell.config.eval.tune_limit
            made = {role: stage.key for role, stage in point.test.parents.items()}
            assert made == {role: stage.key for role, stage in point.dev.parents.items()}
            assert {point.dev.key, point.test.key} <= {stage.key for stage in cell.stages}
    names = [str(stage) for stage in cell.stages if stage.kind in ("eval", "merge")]
    assert len(names) == len(set(names))


def test_the_settings_are_the_tries_that_a_choice_would_look_at() -> None:
    (plain, *_), (asked, *_) = cells(), cells("eval.frontier=all")
    tune = plain.chosen["ties_sv_1"]
    assert list(tune.settings.tries) == [
        point.test.parents["merge"].settings.stated for point in asked.frontier["ties_sv_1"]
    ]
    tries = [stage.key for stage in merged([plain]) if stage.kind == "sft" and "trainings" not in stage.settings]
    assert {point.test.parents["checkpoint"].key for point in asked.frontier["ct_then_sft"]} <= set(tries)


def test_a_base_that_no_budget_changes_is_given_once_to_the_report() -> None:
    planned = cells("eval.frontier=all", "ct.tokens=2048,4096")
    entries: Any = {stage.key: SimpleNamespace(path=stage.slug) for stage in merged(planned)}
    points = collect._frontier(planned, entries)
    assert len(points) == sum(len(tries) for cell in planned for tries in cell.frontier.values())
    assert {(point.method, point.ct_tokens, point.seed) for point in points} == {
        (method, cell.ct_tokens, cell.seed) for cell in planned for method in cell.frontier
    }
    missing = next(iter(planned[0].frontier.values()))[1].dev.key
    del entries[missing]
    assert len(collect._frontier(planned, entries)) == len(points) - 1, "a point takes both splits"


def test_at_the_largest_budget_of_the_sweep_alone() -> None:
    small, large = cells("eval.frontier=largest", "ct.tokens=2048,4096")
    assert not small.frontier and not small.chosen and "tune" not in {stage.kind for stage in small.stages}
    assert large.frontier.keys() == {"ct_then_sft", "task_arithmetic", "ties_sv_1"}
    named, all_of_them = cells("eval.frontier=[4096]"), cells("eval.frontier=all")
    assert [stage.key for stage in merged([small, large])] == [stage.key for stage in merged(named)]
    assert [bool(cell.frontier) for cell in all_of_them] == [True, True]


@pytest.mark.parametrize("other", ["eval.default_settings=true", "eval.split=dev"])
def test_what_says_the_same_twice_is_refused(other: str) -> None:
    with pytest.raises(BadInput, match=r"^eval\.(default_settings|split)"):
        cells("eval.frontier=all", other)
