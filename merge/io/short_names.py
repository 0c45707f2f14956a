"""Names for the models of a merge that can be given away: ids of the Hub, and the last parts of local paths."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from common import hub


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """A name for each path: a hub model's id, or the last parts of a local path, as many as tell all of them apart."""
    models = {path: hub.parse(path, "path") for path in paths}
    names = {path: model.repo for path, model in models.items() if model is not None}
    local = [path for path, model in models.items() if model is None]
    for parts in itertools.count(1):
        tails = ["/".join(Path(path).absolute().parts[1:][-parts:]) for path in local]
        if len(set(tails)) == len({Path(path).absolute() for path in local}):
            break
    shortened = dict(zip(local, tails, strict=True))
    return {path: names.get(path) or shortened[path] for path in models}


def pinned(path: str) -> str | None:
    """A model of the Hub at the commit that was read; None for a local folder."""
    model = hub.parse(path, "path")
    return None if model is None else f"{hub.PREFIX}{model.repo}@{model.cached_commit or model.revision}"
