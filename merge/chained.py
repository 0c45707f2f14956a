"""Several merges in one file, some of which use results of others: YAML documents (as mergekit-multi), or a list.

Each has a `name`, which the others use like a folder. The merge without a name, or else the last one, is published. The
others are computed before it, in a hidden folder next to it that is removed at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from common.errors import BadInput, user_errors
from common.validation import read_yaml_documents
from merge.output.sharing import folders_in, rename_folders
from merge.recipe import Recipe

if TYPE_CHECKING:
    from merge.cli import OnTensor
    from merge.engine.passes import Workers

MODEL_KEYS = {"model", "base_model", "tokenizer_source", "source", "path", "base"}  # keys whose values name models
_NAME = re.compile(r"(?!\.)[\w.-]{1,100}")


@dataclass(frozen=True)
class Stage:
    """One merge of a file. name: None if it has none. needs: names of the merges whose results it uses."""

    name: str | None
    data: Any
    where: str
    needs: tuple[str, ...]


def read_stages(path: Path) -> list[Stage] | None:
    """Read the merges of a file in order of their needs, the published one last; None for a file of one merge.

    Raises BadInput for bad or repeated names, cycles, and results that no merge uses.
    """
    documents = read_yaml_documents(path, "a merge recipe (YAML)")
    if not documents or (len(documents) == 1 and not isinstance(documents[0], list)):
        return None
    listed = documents[0] if len(documents) == 1 else documents
    if not listed:
        raise BadInput(f"{path}: expected a list of merges, got an empty one. Write at least one merge.")
    names = [_name(data, f"{path}: merge {i}") for i, data in enumerate(listed, 1)]
    for i, name in enumerate(names):
        if name in names[:i]:
            what = (
                "two merges have no name. Only the last merge may omit `name`."
                if name is None
                else f"two merges are named {name}. Rename one of them."
            )
            raise BadInput(f"{path}: {what}")
    stages = {}
    for i, (name, data) in enumerate(zip(names, listed, strict=True), 1):
        rest = {key: value for key, value in data.items() if key != "name"}
        models = [text.partition("+")[0] for text in folders_in(rest, MODEL_KEYS)]
        used = tuple(name for name in dict.fromkeys(models) if name in names)
        stages[name] = Stage(name, rest, f"{path}: merge {name or i}", used)
    last = None if None in stages else names[-1]
    try:
        order = list(TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order())
    except CycleError as error:
        raise BadInput(
            f"{path}: these merges need each other: {' <- '.join(map(str, error.args[1]))}. Break the circle."
        ) from None
    taken = {last, *(need for stage in stages.values() for need in stage.needs)}
    if lost := next((name for name in names if name not in taken), None):
        raise BadInput(f"{path}: no merge uses the result of {lost}. Name it in another merge, or remove it.")
    return [stages[name] for name in order]


def _name(data: Any, where: str) -> str | None:
    if not isinstance(data, Mapping):
        raise BadInput(f"{where}: expected a merge recipe or a mergekit config, got {type(data).__name__}.")
    name = data.get("name")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise BadInput(f"{where}: name: must be letters, digits, -, _ and . (not first), got {name!r}."[:300])
    return name


def recipes_of(stages: list[Stage], results: Path, root: Path) -> list[Recipe]:
    """Return the recipes of merges. results: the folder of each named result. Raises BadInput."""

    def place(needs: tuple[str, ...], text: str) -> str:
        name, plus, adapter = text.partition("+")
        return f"{results / name}{plus}{adapter}" if name in needs else text

    documents = [rename_folders(stage.data, partial(place, stage.needs), MODEL_KEYS) for stage in stages]
    return [Recipe.from_document(data, stage.where, root) for data, stage in zip(documents, stages, strict=True)]


def to_yaml(stages: list[Stage], recipes: list[Recipe], results: Path) -> str:
    """Write YAML documents that compute the last result again, independent of the working directory."""
    prefix = f"{results}/"
    documents = [
        ({"name": stage.name} if stage is not stages[-1] else {})
        | rename_folders(recipe.absolute().to_dict(), lambda text: text.removeprefix(prefix), MODEL_KEYS)
        for stage, recipe in zip(stages, recipes, strict=True)
    ]
    return yaml.safe_dump_all(documents, sort_keys=False)


def _check_given(recipe: Recipe, results: Path) -> None:
    """Reject models that cannot be opened, of a merge whose other models are results."""
    from merge.engine.outputs import leader_of, parent_of
    from merge.engine.plan import open_parent

    with user_errors():
        for part in recipe.slices or (recipe,):
            for parent in {leader_of(part), *map(parent_of, part.models)}:
                if not parent[0].is_relative_to(results):
                    open_parent(parent).close()


def write_stages(
    path: str | Path,
    out_dir: str | Path,
    workers: Workers | None = None,
    progress: Callable[[str], AbstractContextManager[OnTensor | None]] = lambda name: nullcontext(),
    **options: Any,
) -> Path:
    """Compute all merges of a file, the last one as `out_dir`; see merge.output.writer.write_many for its options.

    All recipes, and the models that exist, are checked before anything is computed. progress: returns a context for a
    merge's name, which gives the callback for Workers.
    """
    from merge import check
    from merge.engine.passes import DEFAULT
    from merge.output.out_folder import OutFolder
    from merge.output.writer import write

    stages = read_stages(Path(path))
    if stages is None:
        raise BadInput(f"{path}: expected several YAML documents or a list of merges, got one merge.")
    out_folder = OutFolder(out_dir)
    out_folder.clear()
    intermediate = out_folder.intermediate()
    recipes = recipes_of(stages, intermediate.staging, Path(path).parent)
    for stage, recipe in zip(stages, recipes, strict=True):
        if stage.needs:
            _check_given(recipe, intermediate.staging)
        else:
            check(recipe)

    def make(stage: Stage, recipe: Recipe, out: Path, **options: Any) -> Path:
        with progress(stage.name or "the last") as on_tensor:
            return write(recipe, out, workers=replace(workers or DEFAULT, progress=on_tensor), **options)

    try:
        results = intermediate.open()
        for stage, recipe in zip(stages[:-1], recipes, strict=False):
            make(stage, recipe, results / str(stage.name), **{**options, "audit": False, "checksums": False})
        made = make(stages[-1], recipes[-1], Path(out_dir), merge_yml=to_yaml(stages, recipes, results), **options)
        intermediate.discard()
    except BaseException:
        intermediate.discard()  # again, if a signal interrupted it, which happens at most once
        raise
    return made
