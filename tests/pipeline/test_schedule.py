"""A sweep's plan cut into Slurm jobs."""

from __future__ import annotations

import pytest

from pipeline.run.cluster import schedule
from pipeline.stages.stage import STAGE_TYPES
from tests.pipeline.small import stages
from tests.pipeline.toy_stage import toy_stage


@pytest.mark.parametrize(
    "overrides", [[], ["seed=0,1", "ct.tokens=1024,2048,4096"], ["model=tiny", "merge.write=true"]]
)
def test_every_stage_is_in_one_job_after_all_that_it_needs(overrides: list[str]) -> None:
    plan = stages(*overrides)
    tasks = schedule.cut(plan)
    assert sorted(key for task in tasks for key in task.keys) == sorted(stage.key for stage in plan)
    made: set[str] = set()
    for task in tasks:
        assert task.needs <= made, f"{task.name} comes before what it needs"
        for stage in task.stages:
            assert {parent.key for parent in stage.parents.values() if not parent.given} <= made | task.keys
            made.add(stage.key)


def test_every_kind_of_stage_has_a_class_of_jobs() -> None:
    classes = {kind: schedule.work_of(toy_stage(kind, "toy")) for kind in STAGE_TYPES}
    assert set(classes.values()) == {"data", "train", "evaluate"}


def test_a_trajectory_is_one_job_and_ct_then_sft_comes_after_it() -> None:
    tasks = schedule.cut(stages("seed=0,1"))
    trajectories = [task for task in tasks if task.stages[0].kind == "ct"]
    assert [[stage.settings["tokens"] for stage in task.stages] for task in trajectories] == [
        [2048, 4096],
        [2048, 4096],
    ]
    after = [task for task in tasks if "after" in task.stages[0].slug]
    assert len(after) == 4 and all(any(task.needs & trajectory.keys for trajectory in trajectories) for task in after)


def test_no_job_both_trains_and_scores_and_merges_are_one_wide_array() -> None:
    tasks = schedule.cut(stages())
    assert all(len({schedule.work_of(stage) for stage in task.stages}) == 1 for task in tasks)
    widest = max(schedule.arrays(tasks), key=len)
    assert [[stage.kind for stage in task.stages] for task in widest] == [["tune", "merge", "eval"]] * 4


def test_elements_of_an_array_wait_for_the_same_jobs_all_of_them_earlier() -> None:
    earlier: set[str] = set()
    for array in schedule.arrays(schedule.cut(stages("seed=0,1,2"))):
        assert all(task.needs <= earlier for task in array)
        earlier |= {key for task in array for key in task.keys}


def test_evaluations_may_share_a_job_and_are_told_apart_inside() -> None:
    widest = max(schedule.arrays(schedule.cut(stages())), key=len)
    bundles = schedule.bundles(widest, 3)
    assert [len(schedule.cut(bundle.stages)) for bundle in bundles] == [3, 1]
    assert frozenset().union(*(bundle.keys for bundle in bundles)) == frozenset().union(*(task.keys for task in widest))


def test_what_is_done_or_queued_is_not_cut_into_a_job() -> None:
    plan = stages()
    small, large = (stage for stage in plan if stage.kind == "ct")
    (task,) = schedule.cut(plan, {large.key})
    assert task.stages == (large,) and small.key in task.needs


def test_a_job_has_the_nodes_of_its_training() -> None:
    corpus = toy_stage("corpus", "toy", {})
    ct = toy_stage("ct", "toy", {"tokens": 1}, {"blocks": corpus}, {"compute": {"nodes": 2}})
    assert [task.nodes for task in schedule.cut([corpus, ct, toy_stage("eval", "toy", {}, {"checkpoint": ct})])] == [
        1,
        2,
        1,
    ]
