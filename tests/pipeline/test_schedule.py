"""A sweep's plan cut into Slurm jobs."""

from __future__ import annotations

import pytest

from pipeline.run.cluster import schedule
from pipeline.stages import STAGE_TYPES
from tests.pipeline.small import stages
from tests.pipeline.toy_stage import toy_stage


@pytest.mark.parametrize(
    "overrides", [[], ["seed=0,1", "ct.tokens=1024,2048,4096"], ["model=tiny", "merge.write=true"]]
)
def test_every_stage_is_in_one_job_after_all_that_it_needs(overrides: list[str]) -> None:
    plan = stages(*overrides)
    pieces = schedule.group_into_pieces(plan)
    assert sorted(key for piece in pieces for key in piece.keys) == sorted(stage.key for stage in plan)
    made: set[str] = set()
    for piece in pieces:
        assert piece.needs <= made, f"{piece.name} comes before what it needs"
        for stage in piece.stages:
            assert {parent.key for parent in stage.parents.values() if not parent.given} <= made | piece.keys
            made.add(stage.key)


def test_every_kind_of_stage_has_a_class_of_jobs() -> None:
    classes = {kind: schedule.job_class_of(toy_stage(kind, "toy")) for kind in STAGE_TYPES}
    assert set(classes.values()) == {"data", "train", "evaluate"}


def test_a_trajectory_is_one_job_and_ct_then_sft_comes_after_it() -> None:
    pieces = schedule.group_into_pieces(stages("seed=0,1"))
    trajectories = [piece for piece in pieces if piece.stages[0].kind == "ct"]
    assert [[stage.settings.tokens for stage in piece.stages] for piece in trajectories] == [
        [2048, 4096],
        [2048, 4096],
    ]
    after = [piece for piece in pieces if "after" in piece.stages[0].slug]
    assert len(after) == 4 and all(any(piece.needs & trajectory.keys for trajectory in trajectories) for piece in after)


def test_no_job_both_trains_and_scores_and_merges_are_one_wide_array() -> None:
    pieces = schedule.group_into_pieces(stages())
    assert all(len({schedule.job_class_of(stage) for stage in piece.stages}) == 1 for piece in pieces)
    widest = max(schedule.arrays(pieces), key=len)
    assert [[stage.kind for stage in piece.stages] for piece in widest] == [["tune", "merge", "eval"]] * 4


def test_elements_of_an_array_wait_for_the_same_jobs_all_of_them_earlier() -> None:
    earlier: set[str] = set()
    for array in schedule.arrays(schedule.group_into_pieces(stages("seed=0,1,2"))):
        assert all(piece.needs <= earlier for piece in array)
        earlier |= {key for piece in array for key in piece.keys}


def test_evaluations_may_share_a_job_and_are_told_apart_inside() -> None:
    widest = max(schedule.arrays(schedule.group_into_pieces(stages())), key=len)
    bundles = schedule.pack_array(widest, 3)
    assert [len(schedule.group_into_pieces(bundle.stages)) for bundle in bundles] == [3, 1]
    assert frozenset().union(*(bundle.keys for bundle in bundles)) == frozenset().union(
        *(piece.keys for piece in widest)
    )


def test_what_is_done_or_queued_is_not_cut_into_a_job() -> None:
    plan = stages()
    small, large = (stage for stage in plan if stage.kind == "ct")
    (piece,) = schedule.group_into_pieces(plan, {large.key})
    assert piece.stages == (large,) and small.key in piece.needs


def test_a_job_has_the_nodes_of_its_training() -> None:
    corpus = toy_stage("corpus", "toy", {})
    ct = toy_stage("ct", "toy", {"tokens": 1}, {"blocks": corpus}, {"compute": {"nodes": 2}})
    assert [
        piece.nodes
        for piece in schedule.group_into_pieces([corpus, ct, toy_stage("eval", "toy", {}, {"checkpoint": ct})])
    ] == [
        1,
        2,
        1,
    ]
