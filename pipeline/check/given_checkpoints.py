"""Checkpoints that are given: they are there, this account may read them, and they can be merged."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from common import hub as model_hub
from pipeline import inputs, recipes
from pipeline.arms import PAIR
from pipeline.check.finding import Finding, given, guarded
from pipeline.config import Config


def checkpoints(config: Config) -> Iterator[Finding]:
    """Given checkpoints are there, and this account may read them."""
    for key, path in given(config).items():
        yield from guarded(reachable, path, key)


@cache
def reachable(path: str, key: str) -> tuple[Finding, ...]:
    """Refuses what cannot be read; warns of a model of the hub that may change."""
    model = model_hub.parse(path, key)
    if model is None:
        inputs.model_files(Path(path), key)
    else:
        model_hub.check_access(model, key)
        if not model_hub.COMMIT.fullmatch(model.revision):
            pinned = f"hub:{model.repo}@{model_hub.commit(model, key, network=True)}"
            return (Finding(False, f"{key}={model}: is not pinned; say {pinned}, so that it stays what it is"),)
    return ()


def partners(config: Config) -> Iterator[Finding]:
    """Base, CT and SFT can be merged: same tensors, same vocabulary. What is trained here is like the base."""
    from merge import Recipe, check

    folders = {key: model_hub.folder_at_hand(path) for key, path in given(config).items()}
    base = folders.get("model.path")
    if base is None or not model_hub.is_whole(base) or not config.merge.methods:
        return
    methods = list(config.merge.methods.values())
    method = next((method for method in methods if method.of == PAIR), methods[0])
    merged = {name: (folders.get(f"{name}.source", base) or base).absolute() for name in method.of}
    recipe = recipes.complete(method.tries[0], base.absolute(), merged, config.seed)
    check(Recipe.from_dict(recipe, where="merge.methods"))
    yield from ()
