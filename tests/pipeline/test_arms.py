"""Arms that are switched on by a line of config: what they are made of, and that they change nothing else."""

from __future__ import annotations

from collections import Counter

import pytest

from common.errors import BadInput
from pipeline import sweep
from pipeline.baselines import BASELINES
from pipeline.report.formatting import label, labels
from pipeline.run.cluster.schedule import group_into_pieces
from pipeline.stages.cell import Cell, merged, plan_cell
from pipeline.stages.stage import Inputs, Stage
from pipeline.stages.trajectory import trajectories
from train.settings import FrozenColumns

FROZEN = "eval.baselines=[sft_then_ct_frozen]"
TRAINED = "eval.baselines=[base,sft,ct,ct_then_sft,sft_then_ct,target_sft]"
MERGED = "arm=[average_of_ct_then_sft_and_ct,average_of_base_and_sft,chat_vector,random_signs]"
ALIKE = "merge.methods.chat_vector.grid={models.sft.weight:[1.0,0.5]}"  # as many tries as in conf/merge/test


def cells(*overrides: str) -> list[Cell]:
    configs = sweep.expand(["experiment=test", *overrides], multirun=True).configs
    return [plan_cell(config, Inputs()) for config in configs]


def keys(planned: list[Cell]) -> set[str]:
    return {stage.key for stage in merged(planned)}


def parent(stage: Stage, *roles: str) -> Stage:
    for role in roles:
        stage = stage.parents[role]
    return stage


def test_arms_add_stages_and_change_none() -> None:
    assert keys(cells()) < keys(cells(TRAINED, MERGED, ALIKE))


def test_sft_then_ct_is_ct_with_the_same_blocks_on_top_of_sft() -> None:
    small, large = cells(TRAINED)
    for cell in (small, large):
        arm = parent(cell.evals["sft_then_ct"], "checkpoint")
        ct, sft = (parent(cell.evals[name], "checkpoint") for name in ("ct", "sft"))
        assert (
            arm.kind == "ct" and arm.settings == ct.settings and arm.parents["blocks"].key == ct.parents["blocks"].key
        )
        assert arm.parents["model"] is sft


def test_frozen_columns_are_those_that_the_instructions_of_sft_need() -> None:
    overrides = ["eval.baselines=[ct,sft,sft_then_ct,sft_then_ct_frozen]", "ct.freeze.fraction=0.3"]
    for cell in cells(*overrides):
        frozen, plain, sft = (
            parent(cell.evals[name], "checkpoint") for name in ("sft_then_ct_frozen", "sft_then_ct", "sft")
        )
        assert frozen.parents["model"] is sft and frozen.parents["blocks"].key == plain.parents["blocks"].key
        assert frozen.parents["calibration"].key == sft.parents["blocks"].key
        assert frozen.settings.frozen_columns == FrozenColumns(fraction=0.3, blocks=cell.config.ct.freeze.blocks)
        assert frozen.settings.replace(frozen_columns=None) == plain.settings and frozen.trajectory != plain.trajectory


def test_the_fraction_of_frozen_columns_is_a_knob() -> None:
    overrides = ["eval.baselines=[sft,sft_then_ct_frozen]", "eval.frontier=all", "eval.default_settings=false"]
    grid = "ct.freeze.grid={fraction:[0.5,0.25]}"
    for cell, alone in zip(cells(*overrides, grid), cells(*overrides), strict=True):
        points = cell.frontier["sft_then_ct_frozen"]
        assert [point.settings for point in points] == [{"fraction": 0.5}, {"fraction": 0.25}]
        trained = [parent(point.test, "checkpoint") for point in points]
        assert [stage.settings.frozen_columns.fraction for stage in trained] == [0.5, 0.25]
        assert trained[0].key == parent(alone.evals["sft_then_ct_frozen"], "checkpoint").key
        assert trained[0].trajectory != trained[1].trajectory
        assert points[0].test is cell.evals["sft_then_ct_frozen"] and points[1].dev.parents["checkpoint"] is trained[1]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["ct.freeze.grid={fraction:[0.5,0.25]}"], "ct.freeze.grid: only eval.frontier scores every value of it"),
        (["eval.frontier=all", "ct.freeze.grid={fraction:[0.25,0.5]}"], "must begin with ct.freeze.fraction=0.5"),
        (["eval.frontier=all", "ct.freeze.grid={fraction:[0.5,1.5]}"], "grid.fraction=1.5: must be above 0"),
        (["eval.frontier=all", "ct.freeze.grid={fraction:[0.5,0.5]}"], "a value is listed twice"),
        (["eval.frontier=all", "ct.freeze.grid={blocks:[1]}"], "ct.freeze.grid.blocks"),
        (["eval.frontier=all", "ct.freeze.grid={fraction:[]}"], "ct.freeze.grid.fraction"),
    ],
)
def test_a_wrong_knob_of_freezing_is_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(BadInput) as error:
        cells("eval.baselines=[sft,sft_then_ct_frozen]", "eval.default_settings=false", *overrides)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_sft_then_ct_is_a_trajectory_of_its_own() -> None:
    """So that a larger budget continues from the smaller one, and never from CT on the base."""
    lines = trajectories(merged(cells(TRAINED)))
    assert sorted([stage.slug for stage in line.stages] for line in lines.values()) == [
        ["nya-2048-s0", "nya-4096-s0"],
        ["nya-after-en-2048-s0", "nya-after-en-4096-s0"],
    ]


def test_the_ceiling_is_sft_on_ct_with_instructions_in_the_language() -> None:
    for cell in cells(TRAINED):
        target_sft, plain = (parent(cell.evals[name], "checkpoint") for name in ("target_sft", "ct_then_sft"))
        assert target_sft.settings == plain.settings and target_sft.parents["model"] is plain.parents["model"]
        assert parent(target_sft, "blocks", "items").kind == "target_instructions"
        assert parent(plain, "blocks", "items").kind == "items"


def test_replay_in_sft_changes_the_share_and_no_more() -> None:
    (cell, _) = cells("eval.baselines=[ct_then_sft,sft_replay]")
    replay, plain = (parent(cell.evals[name], "checkpoint") for name in ("sft_replay", "ct_then_sft"))
    assert replay.settings == plain.settings and replay.parents["model"].key == plain.parents["model"].key
    differing = parent(replay, "blocks").key_content.items() ^ parent(plain, "blocks").key_content.items()
    assert differing == {("replay_share", 0.5), ("replay_share", 0.25)}


def test_mixed_is_one_training_of_both_kinds_of_blocks() -> None:
    small, large = cells("eval.baselines=[ct,ct_then_sft,mixed]", "sft.block_size=128")
    arm, ct = (parent(small.evals[name], "checkpoint") for name in ("mixed", "ct"))
    assert arm.parents["model"].key == ct.parents["model"].key and arm.kind == "sft" and arm.trajectory is None
    assert parent(arm, "blocks", "ct_blocks").key == ct.parents["blocks"].key
    assert parent(arm, "blocks", "sft_blocks").key == parent(small.evals["ct_then_sft"], "checkpoint", "blocks").key
    assert arm.settings.tokens == arm.settings.schedule_tokens == 2048 + 4096
    assert arm.settings.learning_rate == ct.settings.learning_rate
    assert parent(large.evals["mixed"], "checkpoint").settings.tokens == 4096 + 4096


def test_merge_then_sft_trains_on_the_weights_of_the_merge() -> None:
    for cell in cells("eval.baselines=[merge_then_sft]", "merge.sft_after_merge=ties_sv_1"):
        arm = parent(cell.evals["merge_then_sft"], "checkpoint")
        assert arm.kind == "sft" and parent(arm, "model").kind == "weights"
        assert parent(arm, "model", "merge").key == cell.merges["ties_sv_1"].key
        assert sum(stage.kind == "weights" for stage in cell.stages) == 1, "the other merge is written nowhere"


def test_every_arm_has_a_title_and_can_be_planned_together() -> None:
    planned = cells(
        f"eval.baselines=[{','.join(BASELINES)}]",
        *(MERGED, ALIKE, "sft.block_size=128", "merge.sft_after_merge=ties_sv_1"),
    )
    assert set(BASELINES) <= set(planned[0].evals)
    assert len({label(name) for name in planned[0].evals}) == len(planned[0].evals)
    before: set[str] = set()
    for task in group_into_pieces(merged(planned)):
        assert task.needs <= before
        before |= task.keys


def test_a_merge_of_other_checkpoints_reads_these_and_no_others() -> None:
    (cell, _) = cells(MERGED, ALIKE)
    reads = {name: set(merge.parents) - {"model", "tune"} for name, merge in cell.merges.items()}
    assert reads["average_of_ct_then_sft_and_ct"] == {"ct", "ct_then_sft"}
    assert reads["average_of_base_and_sft"] == {"base", "sft"}
    assert reads["chat_vector"] == {"ct", "sft"} == reads["task_arithmetic"]
    assert cell.merges["average_of_ct_then_sft_and_ct"].parents["ct_then_sft"] is parent(
        cell.evals["ct_then_sft"], "checkpoint"
    )


def test_a_merge_without_ct_is_made_once_for_all_budgets() -> None:
    small, large = cells(MERGED, ALIKE)
    assert small.evals["average_of_base_and_sft"].key == large.evals["average_of_base_and_sft"].key
    assert small.budget_of("average_of_base_and_sft") == large.budget_of("average_of_base_and_sft") == 0
    assert small.evals["average_of_base_and_sft"].slug == "nya-base_with_sft-s0"
    of_kind = Counter(stage.kind for stage in merged([small, large]) if "base_with_sft" in stage.slug)
    assert of_kind == {"merge": 1, "eval": 1}, "it has no settings to choose, and is no candidate for the best merge"
    assert (small.budget_of("chat_vector"), large.budget_of("chat_vector")) == (2048, 4096)


def test_a_merge_is_planned_though_its_checkpoints_are_not_scored() -> None:
    (cell, _) = cells("eval.baselines=[ct]", "arm=[average_of_ct_then_sft_and_ct]")
    assert set(cell.evals) == {"ct", "task_arithmetic", "ties_sv_1", "average_of_ct_then_sft_and_ct"}
    assert any(stage.kind == "sft" and stage.slug.startswith("en-after-nya") for stage in cell.stages)


def test_only_merges_of_ct_and_sft_may_lead() -> None:
    (cell, _) = cells(MERGED, ALIKE, "+merge.methods.chat_vector.control=true")
    methods = cell.config.merge.methods
    assert [name for name, method in methods.items() if method.leads] == ["task_arithmetic", "ties_sv_1"]


def test_jobs_wait_for_what_they_read() -> None:
    before: set[str] = set()
    for task in group_into_pieces(merged(cells(TRAINED, MERGED, ALIKE))):
        assert task.needs <= before
        before |= task.keys


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.baselines=[base,sft_than_ct]"], r"^eval\.baselines\.1=sft_than_ct: .* Did you mean sft_then_ct\?$"),
        (
            ["+merge.methods.ties_sv_1.of=[ct,cts]"],
            r"^merge\.methods\.ties_sv_1\.of\.1=cts: .* Did you mean ct\?$",
        ),
        (["+merge.methods.ties_sv_1.of=[sft,sft]"], r"^merge\.methods\.ties_sv_1\.of=.*a checkpoint is listed twice"),
        (["+merge.methods.ties_sv_1.of=[]"], r"^merge\.methods\.ties_sv_1\.of="),
        (["+merge.methods.ties_sv_1.of=[base,ct]"], r"protect: no such model, got 'sft'. Choose one of base, ct"),
        (["eval.baselines=[merge_then_sft]"], r"^merge\.sft_after_merge=null: "),
        (
            ["merge.sft_after_merge=ties_sv_2"],
            r"^merge\.sft_after_merge=ties_sv_2: no such merge. Did you mean ties_sv_1\?",
        ),
        (["+merge.methods.ties_sv_1.of=[ct,sft,merge_then_sft]"], r"of: merge_then_sft is trained from a merge"),
        (["eval.baselines=[sft_replay]", "sft.replay_fraction=0.5"], r"^sft\.arm_replay_fraction=0\.5: every SFT has"),
        (["eval.baselines=[mixed]"], r"^sft\.block_size=256: .* Set ct\.block_size=128"),
        (["sft=flan", TRAINED], r"^sft\.hub: target_sft needs instructions in the language"),
        (["ct.source=somewhere", "ct.tokens=4096", TRAINED], r"^ct\.source=somewhere: sft_then_ct trains CT"),
        (["ct.source=somewhere", "ct.tokens=4096", FROZEN], r"^ct\.source=somewhere: sft_then_ct_frozen trains CT"),
        (["train=lora", FROZEN], r"^train\.lora: sft_then_ct_frozen freezes columns"),
        (
            ["compute.strategy=fsdp", "compute.processes=2", FROZEN],
            r"^compute\.strategy=fsdp: sft_then_ct_frozen needs all weights",
        ),
        (["ct.freeze.fraction=0"], r"^ct\.freeze\.fraction=0: must be"),
    ],
)
def test_arms_that_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        cells(*overrides)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("sft_then_ct", "SFT-then-CT"),
        ("sft_then_ct_frozen", "SFT-then-CT with frozen columns"),
        ("average_of_ct_then_sft_and_ct", "average of CT-then-SFT and CT"),
        ("average_of_base_and_sft", "average of base and SFT"),
        ("chat_vector", "chat vector"),
        ("target_sft", "target-language SFT (upper bound)"),
        ("linear", "weighted average"),
        ("task_arithmetic", "task arithmetic"),
        ("dare_ties", "DARE TIES"),
        ("ties_fixed", "TIES (fixed settings)"),
        ("ties_sv_1", "TIES + slack 1"),
        ("ties_sv_1_fixed", "TIES + slack 1 (fixed settings)"),
        ("ties_sv_difference_at_norm", "TIES + slack (difference, same norm)"),
        ("tiny/linear", "weighted average (tiny)"),
        ("sft_of_mine", "SFT of mine"),
    ],
)
def test_titles(name: str, title: str) -> None:
    assert label(name) == title


def test_a_method_beside_its_fixed_settings_is_the_tuned_one() -> None:
    assert labels(["ties", "ties_fixed", "linear"]) == {
        "ties": "TIES (tuned)",
        "ties_fixed": "TIES (fixed settings)",
        "linear": "weighted average",
    }
