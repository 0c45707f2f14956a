"""Which trainer states are kept, and what a drop leaves behind."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.stages import trajectory
from pipeline.stages.stage import Stage
from pipeline.store import Store
from tests.pipeline.toy import Makers, annealed, plan


@pytest.mark.parametrize(
    ("held", "missing", "keep_last", "dropped"),
    [
        ({10}, {40, 200}, False, set()),
        ({10, 40}, {200}, False, {10}),
        ({10, 40, 200}, set(), False, {10, 40, 200}),
        ({10, 40, 200}, set(), True, {10, 40}),
        ({10, 200}, {40}, False, {200}),
        ({10, 200}, {40}, True, set()),
        (set(), {10}, True, set()),
    ],
)
def test_states_are_kept_while_a_missing_budget_would_continue_from_them(
    held: set[int], missing: set[int], keep_last: bool, dropped: set[int]
) -> None:
    assert trajectory.prunable_states(held, missing, keep_last) == dropped


@given(st.sets(st.integers(1, 50)), st.sets(st.integers(1, 50)), st.booleans())
def test_a_drop_never_takes_what_a_missing_budget_starts_from(
    held: set[int], missing: set[int], keep_last: bool
) -> None:
    missing -= held
    left = held - trajectory.prunable_states(held, missing, keep_last)
    for wanted in missing:
        assert max((budget for budget in held if budget < wanted), default=0) == max(
            (budget for budget in left if budget < wanted), default=0
        )


def run(store: Store, budgets: tuple[int, ...], folder: Path) -> list[Stage]:
    stages = plan(budgets)
    journal, maker = Journal(folder / "journal.jsonl"), Makers().__getitem__
    Executor(store, stages, journal, maker=maker).compute(stages)  # type: ignore[arg-type]
    return [stage for stage in stages if stage.kind == "ct"]


def test_a_sweep_drops_states_and_a_longer_one_continues_from_the_last(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    small, large = (store.find(stage) for stage in run(store, (20, 40), tmp_path))
    assert small and large
    assert not (small.path / "state").exists() and small.record["dropped"] == ["state"] and not small.has("state")
    assert (large.path / "state").exists() and "dropped" not in large.record
    assert small.damage(thorough=True) is None and (small.path / "steps_here").exists()
    further = store.find(run(store, (20, 40, 60), tmp_path)[-1])
    assert further and further.record["resumed_tokens"] == 40


def test_a_budget_without_a_state_below_it_starts_from_the_start(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run(store, (20, 40), tmp_path)
    between = store.find(run(store, (20, 30, 40), tmp_path)[1])
    assert between and between.record["resumed_tokens"] == 0


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 5))
def test_all_budgets_train_on_as_many_tokens_as_the_largest_alone(budgets: set[int], at_first: int) -> None:
    """Also where the larger ones are asked for later: `at_first` many are in a first sweep, all of them in a second."""
    ascending = tuple(sorted(budgets))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        for sweep in (ascending[:at_first], ascending):
            run(store, sweep, Path(folder))
        records = [entry.record for entry in store.entries("ct")]
    assert sorted(record["settings"]["tokens"] for record in records) == list(ascending)
    assert sum(record["settings"]["tokens"] - record["resumed_tokens"] for record in records) == max(budgets)


def test_a_reader_of_the_old_record_does_not_take_a_drop_for_damage(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    large = store.find(run(store, (20, 40), tmp_path)[-1])
    assert large
    store.drop(large, "state")
    assert large.has("state") and large.damage(thorough=True) is None
    (large.path / "steps_here").unlink()
    assert large.damage(thorough=False) == "steps_here is missing"
    assert json.loads((large.path / "stage.json").read_text())["dropped"] == ["state"]


def test_a_crash_in_the_middle_of_a_drop_leaves_nothing_for_good(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stages = run(store, (20, 40), tmp_path)
    small = store.find(stages[0])
    assert small
    (small.path / "state").write_text("20")  # the record says that it is gone already
    trajectory.drop_all(store, stages)
    again = store.find(stages[0])
    assert again and not (small.path / "state").exists() and again.record == small.record


def test_a_trajectory_knows_its_budgets_and_what_each_continues_from(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run(store, (20, 40), tmp_path)
    stages = plan((60, 20, 40))
    (line,) = trajectory.trajectories(stages).values()
    small, middle, large = line.stages
    assert line.budgets == (20, 40, 60)
    assert [line.previous(stage) for stage in line.stages] == [None, small, middle]
    assert trajectory.previous_stages(stages) == {middle.key: small, large.key: middle}
    resumed = line.resumable(store, large)
    assert resumed and trajectory.budget_of(resumed) == 40
    assert line.resumable(store, middle) is None  # the state of 20 was dropped
    assert line.droppable(store) == []


def run_annealed(store: Store, budgets: tuple[int, ...], folder: Path, decay: int = 5) -> list[Stage]:
    stages = annealed(budgets, decay)
    journal, maker = Journal(folder / "journal.jsonl"), Makers().__getitem__
    Executor(store, stages, journal, maker=maker).compute(stages)  # type: ignore[arg-type]
    return [stage for stage in stages if stage.kind == "ct"]


def test_annealed_budgets_cost_the_longest_trunk_and_the_decays(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    small_trunk, large_trunk, small, _ = run_annealed(store, (20, 40), tmp_path)
    records = [entry.record for entry in store.entries("ct")]
    assert sum(record["settings"]["tokens"] - record["resumed_tokens"] for record in records) == 35 + 5 + 5
    resumed = {record["slug"]: record["resumed_tokens"] for record in records}
    assert resumed == {"trunk-20": 0, "trunk-40": 15, "toy-20": 15, "toy-40": 35}
    kept = [entry.record["slug"] for entry in store.entries("ct") if entry.has("state") and "trunk" in entry.path.name]
    assert kept == ["trunk-40"]
    assert small.trajectory is None and small_trunk.trajectory == large_trunk.trajectory


def test_a_decay_whose_trunk_lost_its_state_starts_from_what_is_left(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run_annealed(store, (20, 40), tmp_path)
    # of the same trunk for the first budget: its state is gone, and the larger one does not serve
    *_, other, _ = run_annealed(store, (21, 41), tmp_path, decay=6)
    entry = store.find(other)
    assert entry and entry.record["resumed_tokens"] == 0 and (entry.path / "weights").read_text() == "21"


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(6, 30), min_size=1, max_size=4), st.integers(1, 5))
def test_the_state_of_a_trunk_is_there_when_its_decay_starts(budgets: set[int], decay: int) -> None:
    """In whatever order the stages are made."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        for stage in run_annealed(store, tuple(sorted(budgets)), Path(folder), decay):
            entry = store.find(stage)
            assert entry and (
                "trunk" not in stage.parents or entry.record["resumed_tokens"] == stage.settings.tokens - decay
            )


def test_the_plan_knows_what_a_decay_continues_from() -> None:
    *_, small_trunk, large_trunk, small, large = annealed()
    expected = {large_trunk.key: small_trunk, small.key: small_trunk, large.key: large_trunk}
    assert trajectory.previous_stages((small_trunk, large_trunk, small, large)) == expected
