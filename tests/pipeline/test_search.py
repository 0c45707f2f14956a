"""A search proposes trials within bounds, gets better with them, and is the same after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import BadInput
from pipeline import sweep
from pipeline.execute import Job
from pipeline.search import Bounds, Sampler, Search, SpaceSearch, middle
from pipeline.stages import tuning
from pipeline.stages.cell import Cell, plan_cell
from pipeline.stages.stage import Inputs

SPACE: dict[str, Bounds] = {"lambda": (0.2, 1.8), "models.ct.weight": (0.0, 1.0)}
SAMPLERS = pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])


def score(settings: dict[str, float]) -> float:
    """The best is at lambda 1.3 and weight 0.25."""
    return -((settings["lambda"] - 1.3) ** 2) - (settings["models.ct.weight"] - 0.25) ** 2


def trials(search: Search, count: int, sign: float = 1) -> list[tuple[dict[str, float], float]]:
    made = []
    for _ in range(count):
        settings = search.ask()
        made.append((settings, sign * score(settings)))
        search.tell(made[-1][1])
    return made


@SAMPLERS
def test_the_first_trial_is_the_middle_and_all_are_within_bounds(sampler: Sampler) -> None:
    made = trials(Search(SPACE, sampler, 0, True), 25)
    assert made[0][0] == middle(SPACE) == {"lambda": 1.0, "models.ct.weight": 0.5}
    for settings, _ in made:
        assert settings.keys() == SPACE.keys()
        assert all(low <= settings[name] <= high for name, (low, high) in SPACE.items())
    assert len({tuple(settings.values()) for settings, _ in made}) == 25


@SAMPLERS
@pytest.mark.parametrize("done", [0, 1, 7, 19])
def test_an_interrupted_search_ends_as_one_that_was_not(sampler: Sampler, done: int) -> None:
    whole = trials(Search(SPACE, sampler, 3, True), 20)
    resumed = Search(SPACE, sampler, 3, True)
    resumed.replay(whole[:done])
    assert trials(resumed, 20 - done) == whole[done:]


def test_a_journal_of_another_search_is_no_journal_of_this_one() -> None:
    other: list[tuple[dict[str, Any], float]] = list(trials(Search(SPACE, "tpe", 1, True), 4))
    with pytest.raises(ValueError, match="this search proposes"):
        Search(SPACE, "tpe", 2, True).replay(other)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_later_trials_are_better(sampler: Sampler, higher_is_better: bool) -> None:
    sign = 1 if higher_is_better else -1
    made = [sign * value for _, value in trials(Search(SPACE, sampler, 0, higher_is_better), 60, sign)]
    assert sum(made[40:]) > sum(made[:20]) and max(made) > -0.02


# --- in a run ---

ON = "merge.search={sampler:cmaes,trials:5}"
SPACES = (
    "~merge.methods.task_arithmetic.grid",
    "+merge.methods.task_arithmetic.space={lambda:[0.4,1.2]}",
    "~merge.methods.ties_sv_1.grid",
    "+merge.methods.ties_sv_1.space={lambda:[0.5,1.5],density:[0.2,1.0]}",
)


def cell(*overrides: str) -> Cell:
    (config,) = sweep.expand(["experiment=test", *overrides], multirun=False).configs
    return plan_cell(config, Inputs())


def test_a_plan_has_the_first_trial_and_the_space_and_other_stages_stay_as_they_were() -> None:
    searched, plain = cell(ON, *SPACES), cell()
    settings = searched.chosen["ties_sv_1"].settings
    assert settings.search == SpaceSearch(
        sampler="cmaes", trials=5, space={"lambda": (0.5, 1.5), "density": (0.2, 1.0)}
    )
    (first,) = settings.tries
    assert (first["lambda"], first["density"], settings.trials) == (1.0, 0.6, 5)
    assert plain.chosen["ties_sv_1"].settings.search is None and plain.chosen["ties_sv_1"].settings.trials == 2
    kinds = ("tune", "merge", "eval")
    assert {stage.key for stage in searched.stages if stage.kind not in kinds} == {
        stage.key for stage in plain.stages if stage.kind not in kinds
    }
    assert cell(ON, *SPACES, "merge.search.trials=6").chosen["ties_sv_1"].key != searched.chosen["ties_sv_1"].key
    assert set(cell(ON, *SPACES, "eval.default_settings=true").default_evals) == {"task_arithmetic", "ties_sv_1"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (SPACES, r"^merge\.methods\.task_arithmetic\.space: is searched by merge\.search, which is null"),
        ([ON], r"^merge\.search: no method has a space"),
        ([ON, *SPACES[1:]], r"^merge\.methods\.task_arithmetic\.space: this method has a grid too"),
        (
            [ON, *SPACES[:2]],
            r"^merge\.methods: every method must have the same number .*task_arithmetic 5, ties_sv_1 2",
        ),
        ([ON, *SPACES, "merge.choice={budgets:all,seeds:own}"], r"^merge\.search: each run proposes its own trials"),
        ([ON, *SPACES, "eval.frontier=all"], r"^merge\.search: eval\.frontier scores all trials"),
        (
            [ON, *SPACES, "merge.methods.ties_sv_1.space.lambda=[2,1]"],
            r"^merge\.methods\.ties_sv_1\.space\.lambda=\[2, 1\]: must",
        ),
        *(
            (
                [ON, *SPACES, f"merge.methods.ties_sv_1.space.lambda={wrong}"],
                r"^merge\.methods\.ties_sv_1\.space\.lambda=.*: must be \[least, largest\]",
            )
            for wrong in ("[1]", "[1,1]", "[0.2,0.5,1]", "1", "[0.5,nan]", "[low,high]")
        ),
        ([ON, *SPACES, "merge.methods.ties_sv_1.space.density=[0.5,2]"], r"space\.density=2: .*density"),
        ([ON, *SPACES, "+merge.methods.ties_sv_1.space.slack=[0,1]"], r"space\.slack: is in the recipe too"),
        ([ON, *SPACES, "+merge.methods.task_arithmetic.space.densty=[0.1,1]"], r"task_arithmetic.*densty"),
        ([ON, *SPACES, "merge.search.trials=1"], r"^merge\.search\.trials=1: "),
        ([ON, *SPACES, "merge.search.sampler=gp"], r"^merge\.search\.sampler=gp: "),
        (
            [ON, *SPACES, "sft.grid={learning_rate:[5e-4,2e-4]}"],
            r"^sft\.grid: CT-then-SFT gets 2 trials .* every merge 5",
        ),
    ],
)
def test_searches_that_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        cell(*overrides)
    assert "\n" not in str(caught.value)


class Killed(Exception):
    """Stands for the death of the process."""


def tuned(folder: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int | None = None) -> list[dict[str, Any]]:
    """The trials of a stage whose merges are scored by `score`; an attempt may die after some of them."""
    stage = cell(ON, *SPACES).chosen["ties_sv_1"]
    scored: list[dict[str, Any]] = []

    def scores_of(recipes: list[dict[str, Any]], *_: Any) -> Iterator[Any]:
        for recipe in recipes:
            if len(scored) == killed_at:
                raise Killed
            scored.append(recipe)
            yield SimpleNamespace(note="", packed=None, settings=recipe)

    monkeypatch.setattr(tuning, "scores_of_merges", scores_of)
    monkeypatch.setattr(tuning, "recipe_of", lambda job, trial, seed: trial)
    monkeypatch.setattr(tuning, "_tokenizer", lambda job: None)
    monkeypatch.setattr(tuning, "selection_tasks", lambda *_: None)
    monkeypatch.setattr(tuning, "score", lambda scores, *_: score({**scores.settings, "models.ct.weight": 0.0}))
    monkeypatch.setattr(tuning.scoring, "task_set", lambda *_: None)
    monkeypatch.setattr(tuning.scoring, "packing_fact", lambda _: {})
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folders = {"items": folder, "corpus": folder}
    tuning.run_tune(Job(stage, folder / "out", folder / "work", folders))
    return [json.loads(line) for line in (folder / "out" / "tries.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("killed_at", [0, 2, 4])
def test_a_stage_that_was_killed_selects_what_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    whole = tuned(tmp_path / "whole", monkeypatch)
    assert len(whole) == 5 and whole[0]["settings"]["lambda"] == 1.0
    with pytest.raises(Killed):
        tuned(tmp_path / "cut", monkeypatch, killed_at)
    assert tuned(tmp_path / "cut", monkeypatch) == whole
    best = max(whole, key=lambda row: row["score"])["settings"]
    assert f"lambda: {best['lambda']}" in (tmp_path / "cut" / "out" / "choice.yml").read_text()
