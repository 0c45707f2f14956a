"""Settings are chosen on dev once for all cells, by the mean over stated ones: the plan, and the choice itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from merge import Recipe
from pipeline import recipes, sweep
from pipeline.execute import Job
from pipeline.run.cluster.schedule import group_into_pieces
from pipeline.stages import tuning
from pipeline.stages.cell import Cell, merged, plan_cell
from pipeline.stages.stage import Inputs, Stage
from tests.pipeline.toy_stage import toy_stage

AXES = ("ct.tokens=2048,4096", "seed=0,1")
ALL = "merge.choice={budgets:all,seeds:all}"
GRID = "sft.grid={learning_rate:[5e-4,2e-4]}"


def cells(*overrides: str) -> list[Cell]:
    configs = sweep.expand(["experiment=test", *AXES, *overrides], multirun=True).configs
    return [plan_cell(config, Inputs()) for config in configs]


def tunes(stage: Stage) -> set[str]:
    return {parent.slug for role, parent in stage.parents.items() if parent.kind == "tune"}


def test_each_cell_chooses_for_itself_where_nothing_else_is_said() -> None:
    for cell in cells():
        for name, merge in cell.merges.items():
            assert tunes(merge) == {f"nya-{name}-{cell.ct_tokens}-s{cell.seed}"} and "tune" in merge.parents
            assert cell.chosen[name] is merge.parents["tune"]


def test_one_choice_for_all_cells() -> None:
    everywhere = {f"nya-ties_sv_1-{budget}-s{seed}" for budget in (2048, 4096) for seed in (0, 1)}
    planned = cells(ALL)
    for cell in planned:
        assert tunes(cell.merges["ties_sv_1"]) == everywhere
        assert cell.chosen["ties_sv_1"] is cell.merges["ties_sv_1"]
    own = {stage.key for stage in merged(cells()) if stage.kind not in ("merge", "eval")}
    assert {stage.key for stage in merged(planned) if stage.kind not in ("merge", "eval")} == own, "tries are no other"


def test_tries_are_scored_in_the_stated_cells_only() -> None:
    planned = cells("merge.choice={budgets:all,seeds:[0]}")
    slugs = {stage.slug for stage in merged(planned) if stage.kind == "tune"}
    assert slugs == {f"nya-{name}-{budget}-s0" for name in ("task_arithmetic", "ties_sv_1") for budget in (2048, 4096)}
    assert [stage.key for stage in merged(planned)] == [
        stage.key for stage in merged(cells("merge.choice={budgets:all,seeds:first}"))
    ]
    by_budget = cells("merge.choice={budgets:own,seeds:[0]}")
    assert tunes(by_budget[-1].merges["ties_sv_1"]) == {"nya-ties_sv_1-4096-s0"} and by_budget[-1].seed == 1


def test_one_try_is_no_choice() -> None:
    for cell in cells("sft.grid={learning_rate:[5e-4]}", "merge=fixed"):
        assert "ct_then_sft" not in cell.chosen


def test_a_cell_alone_chooses_on_the_cells_that_are_stated() -> None:
    (config,) = sweep.expand(["experiment=test", "seed=3", "merge.choice={budgets:[2048],seeds:[0]}"], False).configs
    cell = plan_cell(config, Inputs())
    assert {stage.slug for stage in cell.stages if stage.kind == "ct"} == {"nya-2048-s0", "nya-4096-s3"}


def test_jobs_wait_for_what_they_read() -> None:
    for overrides in ((ALL, GRID), ("merge.choice={budgets:own,seeds:[0]}",), (GRID,)):
        before: set[str] = set()
        stages = merged(cells(*overrides))
        for task in group_into_pieces(stages):
            assert task.needs <= before
            before |= task.keys
        assert before == {stage.key for stage in stages}


def test_ct_then_sft_has_tries_and_is_trained_by_the_chosen_one() -> None:
    plain, tuned = cells(), cells(ALL, GRID)
    for before, after in zip(plain, tuned, strict=True):
        untuned, chosen = (cell.checkpoints["ct_then_sft"] for cell in (before, after))
        assert {stage.kind for stage in chosen.parents.values()} == {"ct", "sft_blocks", "tune"}
        assert chosen.settings.trainings[0] == untuned.settings
        rates = [training.learning_rate for training in chosen.settings.trainings]
        assert rates == [5e-4, 2e-4]
        assert after.chosen["ct_then_sft"] is chosen
    (tuning,) = (stage for stage in tuned[0].stages if stage.kind == "tune" and "ct-then-sft-2048-s0" in stage.slug)
    assert tuning.parents["try-0"].key == plain[0].checkpoints["ct_then_sft"].key, "the first try is no other training"
    assert list(tuning.settings.tries) == [{"learning_rate": 5e-4}, {"learning_rate": 2e-4}]


def test_a_try_of_other_length_has_blocks_of_its_own() -> None:
    (cell, *_) = cells("sft.grid={tokens:[4096,2048]}")
    chosen = cell.checkpoints["ct_then_sft"]
    assert [chosen.parents[f"blocks-{n}"].settings.tokens for n in (0, 1)] == [4096, 2048]
    assert [training.schedule_tokens for training in chosen.settings.trainings] == [4096, 2048]


def test_the_first_try_is_scored_on_test_where_that_is_asked() -> None:
    plain, asked = cells(ALL, GRID), cells(ALL, GRID, "eval.default_settings=true")
    assert not plain[0].default_evals and set(asked[0].default_evals) == {"task_arithmetic", "ties_sv_1", "ct_then_sft"}
    merge = asked[0].default_evals["task_arithmetic"].parents["merge"]
    assert merge.settings.stated == {"method": "task_arithmetic", "lambda": 0.5} and not tunes(merge)
    (untuned, *_) = cells()
    assert asked[0].default_evals["ct_then_sft"].key == untuned.evals["ct_then_sft"].key
    assert {stage.key for stage in merged(plain)} < {stage.key for stage in merged(asked)}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"method": "linear"}, {"method": "task_arithmetic", "lambda": 0.5}, True),
        ({"method": "linear", "models.sft.weight": 2.0}, {"method": "task_arithmetic", "lambda": 0.5}, False),
        ({"method": "linear"}, {"method": "linear", "models.sft.weight": 1.0}, True),
        ({"method": "linear"}, {"method": "linear", "weight": 3.0}, True),
        (
            {"method": "ties", "density": 0.5},
            {"method": "ties_sv", "density": 0.5, "slack": 0.0, "protect": ["sft"]},
            True,
        ),
        ({"method": "task_arithmetic"}, {"method": "task_arithmetic", "norm": 1.0, "norm_of": "sft"}, False),
        ({"method": "task_arithmetic"}, {"method": "task_arithmetic", "models.ct.random_signs": True}, False),
        ({"method": "ties"}, {"method": "ties_sv", "slack": 1.0, "protect": ["sft"]}, False),
        (
            {"method": "task_arithmetic", "lambda": [0.5, 1.0]},
            {"method": "task_arithmetic", "lambda": [1.0, 0.5]},
            False,
        ),
        (
            {"method": "task_arithmetic", "lambda": [0.5, 1.0]},
            {"method": "task_arithmetic", "lambda": [0.5, 1.0]},
            True,
        ),
        ({"method": "linear", "models.ct.weight": -1.0}, {"method": "linear", "models.ct.weight": -1.0}, True),
        ({"method": "ties", "lambda": 0.5}, {"method": "task_arithmetic", "lambda": 0.5}, False),
    ],
)
def test_merges_that_are_the_same_by_another_name(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    folder = Path("folder")
    made = [Recipe.from_dict(recipes.complete(it, folder, {"ct": folder, "sft": folder}, 0)) for it in (one, other)]
    assert (recipes.identity(made[0]) == recipes.identity(made[1])) is same


def tries(*scores: float, metric: str = "acc") -> list[dict[str, object]]:
    return [{"settings": {"lambda": place}, "metric": metric, "score": score} for place, score in enumerate(scores)]


def job(folder: Path, cells: Sequence[list[dict[str, object]]]) -> Job:
    """A stage whose parents scored these tries."""
    folders, parents = {}, {}
    for number, rows in enumerate(cells):
        role = "tune" if len(cells) == 1 else f"tune-{number}"
        folders[role], parents[role] = folder / role, toy_stage("tune", role, {"number": number})
        (folder / role).mkdir()
        tuning.write_trials(folder / role, rows)
    (folder / "out").mkdir()
    return Job(toy_stage("merge", "a", {}, parents), folder / "out", folder / "work", folders)


def test_the_mean_over_cells_decides(tmp_path: Path) -> None:
    """The try that no cell likes best, and that is second everywhere, wins."""
    shared = job(tmp_path, [tries(0.9, 0.6, 0.1), tries(0.1, 0.6, 0.9), tries(0.1, 0.5, 0.2)])
    assert tuning.selected_trial(shared) == (1, {"lambda": 1})
    rows = [json.loads(line) for line in (shared.out / "tries.jsonl").read_text().splitlines()]
    assert rows[1]["scores"] == [0.6, 0.6, 0.5] and rows[1]["score"] == pytest.approx(1.7 / 3)
    assert (shared.out / "choice.yml").read_text() == "lambda: 1\n"


def test_bits_are_better_low_and_of_equals_the_first_is_taken(tmp_path: Path) -> None:
    for name, metric, scores, best in (("bits", "bits_per_byte", (2.0, 1.0, 3.0), 1), ("equal", "acc", (1.0, 1.0), 0)):
        (tmp_path / name).mkdir()
        assert tuning.selected_trial(job(tmp_path / name, [tries(*scores, metric=metric)]))[0] == best


def test_cells_that_scored_other_tries_are_no_choice(tmp_path: Path) -> None:
    other = [{"settings": {"lambda": 7}, "metric": "acc", "score": 0.5}]
    with pytest.raises(ValueError, match="other tries"):
        tuning.selected_trial(job(tmp_path, [tries(0.5), other]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["merge.choice.budgets=some"], r"^merge\.choice\.budgets.*=some"),
        (["merge.choice.budgets=[16k]"], r"^merge\.choice\.budgets: must be at most ct\.schedule_tokens=8192, got 16k"),
        (
            ["merge.methods.task_arithmetic.grid.lambda=[0.5,0.50]"],
            r"^merge\.methods\.task_arithmetic\.grid: .* give the same merge",
        ),
        (["merge.choice.seeds=[]"], r"^merge\.choice\.seeds"),
        (["sft.grid={learning_rate:[2e-4,5e-4]}"], r"^sft\.grid\.learning_rate: must begin with sft\.learning_rate"),
        (["sft.grid={learning_rate:[5e-4,5e-4]}"], r"^sft\.grid: a trial is listed twice"),
        (["sft.grid={learning_rate:[5e-4,7]}"], r"^sft\.grid\.learning_rate=7: .*less than 1"),
        (["sft.grid={tokens:[4096,many]}"], r"^sft\.grid\.tokens=many: "),
        (["sft.grid={rate:[5e-4]}"], r"^sft\.grid\.rate"),
        (["sft.grid={learning_rate:[5e-4,2e-4,1e-4]}"], r"^sft\.grid: CT-then-SFT gets 3 trials .* every merge 2"),
    ],
)
def test_choices_that_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        cells(*overrides)


def test_tries_of_an_interrupted_choice_are_read_up_to_where_they_were_cut_off(tmp_path: Path) -> None:
    rows = [{"method": "a\u2028b"}, {"method": "c"}]
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (tmp_path / "tries.jsonl").write_bytes(whole + '{"method": "ŵ'.encode()[:-1])
    assert tuning.read_trials(tmp_path / "tries.jsonl") == rows
    assert (tmp_path / "tries.jsonl").read_bytes() == whole
