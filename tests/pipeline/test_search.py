"""A search proposes trials within bounds, gets better with them, and is the same after an interruption."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.stages.search import Bounds, Sampler, Search, middle

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
