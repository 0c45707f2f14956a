"""A search over the settings of a merge, one trial after another, by optuna.

A grid states its trials; a search proposes each from the scores of those before, within bounds. It is as repeatable
as a grid: a search that was interrupted first proposes all its past trials again, so its end is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from common.settings import Settings

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.samplers import BaseSampler

Sampler = Literal["tpe", "cmaes", "random"]


def bounds(value: object) -> object:
    """Return a value that is [least, largest]. Raises ValueError."""
    match value:
        case [int() | float() as least, int() | float() as largest] if least < largest:
            return value
    raise ValueError("must be [least, largest], two numbers of which the first is smaller, such as [0.5, 1.5].")


Bounds = Annotated[tuple[float, float], BeforeValidator(bounds)]


class SearchSettings(Settings):
    """How many trials each method with a space gets, and what proposes them."""

    sampler: Sampler
    trials: Annotated[int, Field(ge=2)]


class SpaceSearch(SearchSettings):
    """The search of one method. space: bounds by setting of the recipe."""

    space: dict[str, Bounds]


class Search:
    """The proposals for one method.

    space: bounds by setting of the recipe. higher_is_better: of the score. seed: of the sampler.
    """

    def __init__(self, space: Mapping[str, Bounds], sampler: Sampler, seed: int, higher_is_better: bool) -> None:
        import optuna
        from optuna.distributions import BaseDistribution, FloatDistribution

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            sampler=make_sampler(sampler, seed), direction="maximize" if higher_is_better else "minimize"
        )
        self._space: dict[str, BaseDistribution] = {
            name: FloatDistribution(low, high) for name, (low, high) in space.items()
        }
        self._study.enqueue_trial(middle(space))
        self._open: Trial | None = None

    def ask(self) -> dict[str, float]:
        """Return the settings of the next trial; the first is the middle of the space."""
        assert self._open is None, "the trial before has no score yet"
        self._open = self._study.ask(self._space)
        return {name: float(self._open.params[name]) for name in self._space}

    def tell(self, score: float) -> None:
        """Take the score of the trial that was asked for last."""
        assert self._open is not None, "no trial waits for a score"
        self._study.tell(self._open, score)
        self._open = None

    def replay(self, trials: Iterable[tuple[Mapping[str, Any], float]]) -> None:
        """Repeat the trials of an interrupted search. Raises ValueError if it proposes others than these."""
        for number, (settings, score) in enumerate(trials):
            proposed = self.ask()
            if any(settings[name] != value for name, value in proposed.items()):
                raise ValueError(f"trial {number} is {dict(settings)}, and this search proposes {proposed}")
            self.tell(score)


def make_sampler(name: Sampler, seed: int) -> BaseSampler:
    """Return optuna's sampler: TPE (Bergstra et al. 2011), CMA-ES (Hansen 2016, arXiv 1604.00772) or random."""
    from optuna import samplers

    if name == "tpe":
        return samplers.TPESampler(seed=seed)
    return samplers.CmaEsSampler(seed=seed) if name == "cmaes" else samplers.RandomSampler(seed=seed)


def middle(space: Mapping[str, Bounds]) -> dict[str, float]:
    """Return the settings in the middle of the space."""
    return {name: (low + high) / 2 for name, (low, high) in space.items()}
