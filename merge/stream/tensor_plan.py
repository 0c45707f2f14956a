"""From recipes to what an engine needs: opened parents, checked against each other, and the list of output tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from common import hub
from common.errors import BadInput, user_errors
from merge.io.adapter import adapted
from merge.io.checkpoint import Checkpoint
from merge.io.name_aliases import under_one_set_of_names
from merge.io.open_folder import open_checkpoint
from merge.io.token_tensors import bare_architecture, head_name, is_head
from merge.io.vocabulary import read_vocabulary
from merge.per_tensor import depth_of, layer_counts, stack_of
from merge.recipe import Recipe
from merge.stream.alignment import NO_TOKENIZER, Alignment, align
from merge.stream.output import Output, Parent, leader_of, output_of, parent_of
from merge.stream.setting_checks import check_settings
from merge.stream.special_rows import SpecialRows, special_rows
from merge.stream.stacking import stacked_outputs


@dataclass
class Plan:
    """Checked recipes over the same parents.

    leader: the base, or the first model where there is none. alignment: where vocabularies were brought to one.
    left_out: tensors that not all parents have and that transformers does not load. special: rows that one model gives.
    """

    recipes: tuple[Recipe, ...]
    parents: dict[Parent, Checkpoint]
    outputs: list[Output]
    leader: Parent
    alignment: Alignment | None = None
    left_out: list[str] = field(default_factory=list)
    special: Mapping[str, SpecialRows] = field(default_factory=dict)

    @property
    def tied(self) -> bool:
        """Whether the result's head is its embedding: only if it is in every parent."""
        return not any(is_head(output.name) for output in self.outputs) and self.parents[self.leader].tied

    @property
    def tokenizer_from(self) -> Checkpoint:
        """The parent whose tokenizer the result has, or has with others' tokens added."""
        if self.alignment is None:
            return self.parents[self.leader]
        return self.alignment.models[self.alignment.origin]

    def bytes_of(self, output: Output) -> int:
        """What an output takes to read, over all parents."""
        return sum(self.parents[parent].tensors[source].nbytes for parent, source in output.sources.items())

    def narrowed(self, recipes: Sequence[Recipe]) -> Plan:
        """The same parents, opened and checked, for some of the recipes."""
        return replace(self, recipes=tuple(recipes))

    def close(self) -> None:
        for parent in self.parents.values():
            parent.close()


def make_plan(recipes: Sequence[Recipe]) -> Plan:
    """Open the parents of all recipes and reject what cannot be merged, before anything is computed.

    Raises BadInput.
    """
    if not recipes:
        raise BadInput("no recipe given")
    leader = leader_of(recipes[0])
    parents: dict[Parent, Checkpoint] = {}
    plan = Plan(tuple(recipes), parents, [], leader)
    with user_errors(), ExitStack() as opened:
        opened.callback(plan.close)
        for recipe in recipes:
            origin = leader_of(recipe)
            if origin != leader:
                raise BadInput(f"one pass merges onto one base: {leader[0]} and {origin[0]} need two passes")
            for part in recipe.slices or (recipe,):
                for parent in [origin, leader_of(part), *map(parent_of, part.models)]:
                    if parent not in parents:
                        parents[parent] = open_parent(parent)
        _check_configs(plan)
        named, plan.left_out = under_one_set_of_names(parents, leader)
        parents.update(named)
        _settle_tokenizers(plan)
        plan.outputs.extend(stacked_outputs(recipes, parents) if recipes[0].slices else _outputs(plan))
        lead = parents[leader]
        check_settings(recipes, plan.outputs, head_name(lead.config, lead.tensors) if plan.tied else None)
        plan.special = special_rows(plan)
        opened.pop_all()
    return plan


def open_parent(parent: Parent) -> Checkpoint:
    """The checkpoint of a parent, with its adapter where it has one."""
    folder, adapter = parent
    checkpoint = open_checkpoint(hub.fetch(str(folder), "path"))
    return checkpoint if adapter is None else adapted(checkpoint, hub.fetch(str(adapter), "adapter"))


def _check_configs(plan: Plan) -> None:
    lead = plan.parents[plan.leader]
    for parent in plan.parents.values():
        for key in ("model_type", "architectures"):
            mine, theirs = lead.config.get(key), parent.config.get(key)
            if mine and theirs and mine != theirs and not (key == "architectures" and _is_inside(mine, theirs)):
                raise BadInput(
                    f"{parent.folder / 'config.json'}: {key} is {theirs}, but {lead.folder} has {mine}: "
                    "only checkpoints of one architecture can be merged"
                )


def _is_inside(mine: Any, theirs: Any) -> bool:
    """Whether one of two classes is that of the model inside the other, such as GPT2Model and GPT2LMHeadModel."""
    return bare_architecture(mine) != bare_architecture(theirs)


def _settle_tokenizers(plan: Plan) -> None:
    """Compare them, or bring the parents to one, as the recipes say."""
    modes = {recipe.tokenizer for recipe in plan.recipes}
    aligning = modes - {"required", "optional"}
    if not aligning:
        if "required" in modes:
            _check_tokenizers(plan)
        return
    if len(modes) > 1:
        raise BadInput(f"tokenizer: one pass merges to one; {' and '.join(sorted(modes))} need a pass each")
    (mode,) = aligning
    keys = list(plan.parents)
    named = {model.name: parent_of(model) for recipe in plan.recipes for model in recipe.models}
    origin = plan.leader if mode in ("union", "base") else named[mode]
    base = keys.index(plan.leader) if plan.recipes[0].base is not None else None
    plan.alignment = align(list(plan.parents.values()), mode, keys.index(origin), base)
    if plan.recipes[0].slices and plan.alignment.rows is not None:
        raise BadInput("slices: the vocabularies differ; restack layers of models that have one tokenizer")
    plan.parents.update(zip(keys, plan.alignment.models, strict=True))


def _check_tokenizers(plan: Plan) -> None:
    lead = plan.parents[plan.leader]
    expected = read_vocabulary(lead.folder)
    if expected is None:
        raise BadInput(f"{lead.folder}: {NO_TOKENIZER}")
    for parent in plan.parents.values():
        vocabulary = read_vocabulary(parent.folder) if parent.folder != lead.folder else None
        if vocabulary is not None and (difference := expected.difference(vocabulary)):
            raise BadInput(
                f"{parent.folder}: its tokenizer has another vocabulary than {lead.folder} ({difference}): row i of "
                "the embeddings would mean two different tokens; set `tokenizer: base` or `union` to merge by token, "
                "or `optional` to merge by row number all the same"
            )


def _outputs(plan: Plan) -> list[Output]:
    lead = plan.parents[plan.leader]
    names = list(dict.fromkeys(name for parent in [lead, *plan.parents.values()] for name in parent.tensors))
    layers = layer_counts(names)
    return [
        output_of(
            plan.parents,
            Output(name, (), {}, True, plan.leader, depth_of(name, layers.get(stack_of(name) or "", 0))),
        )
        for name in names
    ]
