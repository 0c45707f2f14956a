"""Plan a merge: open the parents, check them against each other and the settings, and list the output tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from common import hub
from common.errors import BadInput, user_errors
from merge.checkpoints.adapter import adapted
from merge.checkpoints.aliases import under_one_set_of_names
from merge.checkpoints.checkpoint import Checkpoint, torch_dtype
from merge.checkpoints.folder import open_checkpoint
from merge.checkpoints.tensor_names import (
    bare_architecture,
    depth_of,
    head_name,
    is_head,
    is_in_unknown_stack,
    layer_counts,
    row_count,
    stack_of,
    token_tensors,
)
from merge.checkpoints.token_rows import NO_TOKENIZER, Alignment, align
from merge.checkpoints.tokenizer import read_vocabulary, template_tokens
from merge.engine.outputs import Output, Parent, leader_of, output_of, parent_of, stacked_outputs
from merge.methods import AVERAGE, SPAN
from merge.per_tensor import Rule, Setting, applying, resolve
from merge.recipe import UNION_OF, Recipe

if TYPE_CHECKING:
    from merge.engine.pieces import Piece


@dataclass
class Plan:
    """Checked recipes over the same parents.

    leader: the base, or the first model if there is none. alignment: if vocabularies were brought to one. left_out:
    tensors that not all parents have and that transformers does not load. special: rows that one model gives.
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
        """Tell whether the result's head is its embedding: only if this holds in every parent."""
        return not any(is_head(output.name) for output in self.outputs) and self.parents[self.leader].tied

    @property
    def tokenizer_from(self) -> Checkpoint:
        """Return the parent whose tokenizer the result has, with or without added tokens of others."""
        if self.alignment is None:
            return self.parents[self.leader]
        return self.alignment.models[self.alignment.origin]

    def bytes_of(self, output: Output) -> int:
        """Return the bytes to read for an output, over all parents."""
        return sum(self.parents[parent].tensors[source].nbytes for parent, source in output.sources.items())

    def narrowed(self, recipes: Sequence[Recipe]) -> Plan:
        """Return the plan for some of its recipes, with the same opened parents."""
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
    """Open the checkpoint of a parent, with its adapter if it has one."""
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
    """Compare tokenizers, or bring the parents to one, as the recipes require."""
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
    name, joined = mode.removeprefix(UNION_OF), any(recipe.has_union for recipe in plan.recipes)
    origin = plan.leader if name in ("union", "base") else named[name]
    base = keys.index(plan.leader) if plan.recipes[0].base is not None else None
    plan.alignment = align(list(plan.parents.values()), joined, keys.index(origin), base)
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


def compute_dtype(recipe: Recipe, plan: Plan, output: Output) -> torch.dtype:
    """Return the dtype of the arithmetic; `inputs` is what the parents' dtypes promote to, as in mergekit."""
    if recipe.compute_dtype != "inputs":
        return getattr(torch, recipe.compute_dtype)
    recipe = recipe.at(output.slice)
    parents = [parent_of(model) for model in recipe.models] + ([output.leader] if recipe.base is not None else [])
    codes = [plan.parents[parent].tensors[output.sources[parent]].dtype for parent in parents]
    return functools.reduce(torch.promote_types, map(torch_dtype, codes))


def out_dtype(recipe: Recipe, plan: Plan, output: Output) -> torch.dtype:
    """Return the dtype to which the result is rounded, once, to nearest even; buffers keep their dtype."""
    base_dtype = torch_dtype(plan.parents[output.leader].tensors[output.sources[output.leader]].dtype)
    if not output.floating or recipe.out_dtype == "base":
        return base_dtype
    return compute_dtype(recipe, plan, output) if recipe.out_dtype == "compute" else getattr(torch, recipe.out_dtype)


def check_settings(recipes: Sequence[Recipe], outputs: Sequence[Output], tied: str | None) -> None:
    """Resolve every setting for every tensor that is merged.

    tied: the head's name where it is the embedding; a rule for it may then match nothing. Raises BadInput for a rule
    that matches no tensor, a tensor that no rule matches, a gradient where layers are not known, and weights to be
    averaged whose sum is zero.
    """
    floating = [output for output in outputs if output.floating]
    if not floating:
        raise BadInput("the checkpoints hold no floating point tensors: there is nothing to merge")
    names = list(dict.fromkeys(name for output in floating for name in (output.name, *output.names.values())))
    layers = layer_counts(names)
    for recipe in recipes:
        for number, part in enumerate(recipe.slices) if recipe.slices else [(None, recipe)]:
            mine = [output for output in floating if output.slice == number]
            for key, parent, setting in _settings(part):
                if isinstance(setting, tuple):
                    _check_rules(key, setting, [*names, tied] if tied else names)
                    for output in mine:
                        name = output.name if parent is None else output.name_in(parent)
                        _check_depth(key, applying(setting, name, key), name, bool(layers))
            if part.spec.combine in (AVERAGE, SPAN) and part.normalize:
                _check_sums(part, mine)


def _settings(recipe: Recipe) -> Iterator[tuple[str, Parent | None, Setting]]:
    """Yield settings that may differ between tensors: key, whose names its rules use (None: the result), value."""
    for model in recipe.models:
        for key in recipe.spec.model_keys:
            yield f"models.{model.name}.{key}", (model.path, model.adapter), getattr(model, key)
    for key, name in (("lambda", "lambda_"), ("t", "t"), ("select_topk", "select_topk")):
        if key in recipe.spec.recipe_keys:
            yield key, None, getattr(recipe, name)


def _check_rules(key: str, setting: Setting, names: Sequence[str]) -> None:
    for i, rule in enumerate(setting if isinstance(setting, tuple) else ()):
        if isinstance(rule, Rule) and not any(rule.matches(name) for name in names):
            layers = rule.layers and f"layers {rule.layers[0]}-{rule.layers[1]}"
            wanted = ", ".join(filter(None, [rule.kind, rule.filter and f"filter {rule.filter!r}", layers]))
            stacks = ", ".join(f"{stack}0-{count - 1}" for stack, count in sorted(layer_counts(names).items()))
            raise BadInput(f"{key}[{i}]: {wanted}: matches no tensor; the layers are {stacks or 'not known'}")


def _check_depth(key: str, value: float | tuple[float, ...], name: str, layers: bool) -> None:
    """Reject a gradient for a tensor of unknown depth. layers: whether any tensor's name has its layer."""
    if isinstance(value, tuple) and len(set(value)) > 1 and (not layers or is_in_unknown_stack(name)):
        raise BadInput(
            f"{key}: a gradient over depth, but the name of tensor {name} does not tell its layer; give rules"
        )


def _check_sums(recipe: Recipe, outputs: Sequence[Output]) -> None:
    for output in outputs:
        weights = (
            resolve(model.weight, output.name_in((model.path, model.adapter)), output.depth) for model in recipe.models
        )
        if abs(sum(weights)) < 1e-8:
            raise BadInput(
                f"models: the weights of tensor {output.name} sum to 0, and an average is divided by their sum; "
                "give weights with another sum, or normalize: false"
            )


@dataclass(frozen=True)
class SpecialRows:
    """Rows of a chat template's tokens, taken from one model: a mix of several models' turn marks is known to none.

    parent: the model that gives them. rows: their ids in the result. tables: tensors with one row per token.
    """

    parent: Parent
    rows: torch.Tensor
    tables: frozenset[str]

    def put(self, values: torch.Tensor, output: Output, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """Return a merged slice [rows, columns] with the model's rows in it; a copy if it has any."""
        count = row_count(output.shape) if output.name in self.tables else None
        if not count:
            return values
        width = output.numel // count
        first, last = piece.start // width, piece.stop // width
        here = self.rows[(self.rows >= first) & (self.rows < last)] - first
        if not len(here):
            return values
        out = values.clone().view(-1, width)
        out[here] = piece.theta(self.parent, dtype).view(-1, width)[here].to(out.dtype)
        return out.view(values.shape)


def special_rows(plan: Plan) -> Mapping[str, SpecialRows]:
    """Return special rows by the recipes' `special_rows`. Raises BadInput if a name is another model elsewhere."""
    found: dict[str, SpecialRows] = {}
    for recipe in plan.recipes:
        name = recipe.special_rows
        if name is not None and name not in found:
            found[name] = _of_model(plan, parent_named(recipe, name))
        elif name is not None and found[name].parent != parent_named(recipe, name):
            raise BadInput(f"special_rows: {name} is another model in another recipe. Merge them one by one.")
    return found


def parent_named(recipe: Recipe, name: str) -> Parent:
    """Return the parent with this name in a recipe."""
    return leader_of(recipe) if name == "base" else next(parent_of(m) for m in recipe.models if m.name == name)


def _of_model(plan: Plan, parent: Parent) -> SpecialRows:
    tokens = template_tokens(plan.parents[parent].folder)
    if plan.alignment is not None and plan.alignment.tokenizer is not None:
        ids = plan.alignment.tokenizer.get_vocab()
    else:
        vocabulary = read_vocabulary(plan.tokenizer_from.folder)
        ids = vocabulary.ids if vocabulary else {}
    missing: Sequence[str] = [token for token in tokens if token not in ids]
    if missing:
        raise BadInput(
            f"special_rows: {plan.tokenizer_from.folder} has no token {missing[0]!r}, which the chat template of "
            f"{plan.parents[parent].folder} writes. Set `tokenizer` to that model."
        )
    shapes = {output.name: output.shape for output in plan.outputs if output.floating}
    tables = frozenset(token_tensors(shapes, plan.parents[plan.leader].config))
    return SpecialRows(parent, torch.tensor(sorted(ids[token] for token in tokens)), tables)
