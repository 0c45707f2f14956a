"""From recipes to what an engine needs: opened parents, checked against each other, and the list of output tensors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from common import hub
from common.errors import BadInput, in_one_line
from merge.io.adapter import adapted
from merge.io.checkpoint import EMBEDDINGS, FLOATS, HEAD, Checkpoint
from merge.io.open_folder import open_checkpoint
from merge.io.vocabulary import read_vocabulary
from merge.per_tensor import stack_of
from merge.recipe import ModelRef, Recipe
from merge.stream.setting_checks import check_settings, layer_counts

Parent = tuple[Path, Path | None]  # folder, adapter


@dataclass(frozen=True)
class Output:
    """One tensor of the result.

    sources: its name in each parent (it differs where a parent's head is its embedding).
    """

    name: str
    shape: tuple[int, ...]
    sources: dict[Parent, str]
    floating: bool

    @property
    def numel(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size


@dataclass
class Plan:
    """Checked recipes over the same parents. `leader`: the base, or the first model where there is none."""

    recipes: tuple[Recipe, ...]
    parents: dict[Parent, Checkpoint]
    outputs: list[Output]
    leader: Parent

    @cached_property
    def _layers(self) -> dict[str, int]:
        return layer_counts([output.name for output in self.outputs])

    def layers_of(self, name: str) -> int:
        """How many layers the stack has that a tensor belongs to; 0 outside of stacks."""
        return self._layers.get(stack_of(name) or "", 0)

    @property
    def tied(self) -> bool:
        """Whether the result's head is its embedding: only if it is in every parent."""
        return not any(output.name.endswith(HEAD) for output in self.outputs) and self.parents[self.leader].tied

    def bytes_of(self, output: Output) -> int:
        """What an output takes to read, over all parents."""
        return sum(self.parents[parent].tensors[source].nbytes for parent, source in output.sources.items())

    def narrowed(self, recipes: Sequence[Recipe]) -> Plan:
        """The same parents, opened and checked, for some of the recipes."""
        return replace(self, recipes=tuple(recipes))

    def close(self) -> None:
        for parent in self.parents.values():
            parent.close()


def parent_of(model: ModelRef) -> Parent:
    return (model.path, model.adapter)


def make_plan(recipes: Sequence[Recipe]) -> Plan:
    """Open the parents of all recipes and refuse what cannot be merged, before anything is computed.

    Raises BadInput.
    """
    if not recipes:
        raise BadInput("no recipe given")
    leader: Parent = (recipes[0].base, None) if recipes[0].base is not None else parent_of(recipes[0].models[0])
    parents: dict[Parent, Checkpoint] = {}
    plan = Plan(tuple(recipes), parents, [], leader)
    with in_one_line(), ExitStack() as opened:
        opened.callback(plan.close)
        for recipe in recipes:
            origin: Parent = (recipe.base, None) if recipe.base is not None else parent_of(recipe.models[0])
            if origin != leader:
                raise BadInput(f"one pass merges onto one base: {leader[0]} and {origin[0]} need two passes")
            for parent in [origin, *map(parent_of, recipe.models)]:
                if parent not in parents:
                    parents[parent] = open_parent(parent)
        _check_configs(plan)
        if any(recipe.tokenizer == "required" for recipe in recipes):
            _check_tokenizers(plan)
        plan.outputs.extend(_outputs(plan))
        check_settings(recipes, plan.outputs, plan.tied)
        opened.pop_all()
    return plan


def open_parent(parent: Parent) -> Checkpoint:
    """The checkpoint of a parent, with its adapter where it has one."""
    folder, adapter = parent
    checkpoint = open_checkpoint(hub.fetch(str(folder), "path"))
    return checkpoint if adapter is None else adapted(checkpoint, adapter)


def _check_configs(plan: Plan) -> None:
    lead = plan.parents[plan.leader]
    for parent in plan.parents.values():
        for key in ("model_type", "architectures"):
            mine, theirs = lead.config.get(key), parent.config.get(key)
            if mine and theirs and mine != theirs:
                raise BadInput(
                    f"{parent.folder / 'config.json'}: {key} is {theirs}, but {lead.folder} has {mine}: "
                    "only checkpoints of one architecture can be merged"
                )


def _check_tokenizers(plan: Plan) -> None:
    lead = plan.parents[plan.leader]
    expected = read_vocabulary(lead.folder)
    if expected is None:
        raise BadInput(
            f"{lead.folder}: no tokenizer.json, vocab.json or tokenizer.model; add the tokenizer, or set "
            "`tokenizer: optional`"
        )
    for parent in plan.parents.values():
        vocabulary = read_vocabulary(parent.folder) if parent.folder != lead.folder else None
        if vocabulary is not None and (difference := expected.difference(vocabulary)):
            raise BadInput(
                f"{parent.folder}: its tokenizer has another vocabulary than {lead.folder} ({difference}): row i of "
                "the embeddings would mean two different tokens; retrain with one tokenizer, or set "
                "`tokenizer: optional` to merge by row number all the same"
            )


def _outputs(plan: Plan) -> list[Output]:
    lead = plan.parents[plan.leader]
    names = list(dict.fromkeys(name for parent in [lead, *plan.parents.values()] for name in parent.tensors))
    return [_output(plan, name) for name in names]


def _output(plan: Plan, name: str) -> Output:
    lead = plan.parents[plan.leader]
    sources: dict[Parent, str] = {}
    for key, parent in plan.parents.items():
        source = parent.source_of(name)
        if source is None:
            holder = next(other for other in plan.parents.values() if name in other.tensors)
            raise BadInput(
                f"{parent.folder}: tensor {name} is missing, but {holder.folder} has it: "
                "merge checkpoints of one architecture"
            )
        sources[key] = source
    shape = lead.tensors[sources[plan.leader]].shape
    floating = lead.tensors[sources[plan.leader]].dtype in FLOATS
    for key, source in sources.items():
        info = plan.parents[key].tensors[source]
        if info.shape != shape:
            rows_differ = info.shape[1:] == shape[1:] and source.endswith((*EMBEDDINGS, HEAD))
            hint = (
                "; the vocabularies differ: give both models one tokenizer and resize their embeddings"
                if rows_differ
                else ""
            )
            raise BadInput(
                f"{info.file}: tensor {source} is {list(info.shape)}, but in {lead.folder} it is {list(shape)}{hint}"
            )
        if (info.dtype in FLOATS) != floating:
            raise BadInput(
                f"{info.file}: tensor {source} is {info.dtype}, but floating point in one parent and not in the other"
            )
    return Output(name, shape, sources, floating)
