"""Tensors of a merge's result: where they come from in each parent, and whether these fit each other.

With restacked layers, a tensor has another name in its parents, and each slice of layers has its parents. As in
mergekit, embeddings come from the first slice's models by its settings, and what follows the layers (the final norm,
the head) from the last one's; gradients run over the layers of a slice; a model's rules refer to its own names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import BadInput
from merge.checkpoints.checkpoint import FLOATS, Checkpoint
from merge.checkpoints.tensor_names import is_embedding, is_head, layer_counts, stack_of
from merge.recipe import ModelRef, Recipe, Slice

Parent = tuple[Path, Path | None]  # folder, adapter
BEFORE = ("embed", "embd", "wte", "wpe", "relative_pe")  # parts of names of tensors before the layers
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # the number of layers in configs
WIDTHS = ("hidden_size", "n_embd", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass(frozen=True)
class Output:
    """One tensor of the result.

    sources: the tensor of each parent that it is made from. leader: the base, or the first model if there is none.
    depth: 0 in the first layer (of its slice) and outside of layers, 1 in the last. slice: number of its slice in the
    recipes. names: its names in parents if layers are restacked (a source may be the embedding instead).
    """

    name: str
    shape: tuple[int, ...]
    sources: dict[Parent, str]
    floating: bool
    leader: Parent
    depth: float = 0.0
    slice: int | None = None
    names: dict[Parent, str] = field(default_factory=dict)

    def name_in(self, parent: Parent) -> str:
        """Return its name in a parent."""
        return self.names.get(parent, self.name)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def parent_of(model: ModelRef) -> Parent:
    return (model.path, model.adapter)


def leader_of(recipe: Recipe) -> Parent:
    """Return the base, or the first model (of the first slice) of a recipe without a base."""
    if recipe.base is not None:
        return (recipe.base, None)
    return parent_of((recipe.slices[0] if recipe.slices else recipe).models[0])


def output_of(parents: Mapping[Parent, Checkpoint], wanted: Output) -> Output:
    """Return `wanted` with its shape and its source in each of `parents`. Raises BadInput if they do not fit."""
    lead = parents[wanted.leader]
    sources: dict[Parent, str] = {}
    for key, parent in parents.items():
        name = wanted.name_in(key)
        source = parent.source_of(name)
        if source is None:
            holder = next(other for own, other in parents.items() if wanted.name_in(own) in other.tensors)
            raise BadInput(
                f"{parent.folder}: tensor {name} is missing, but {holder.folder} has it: "
                "merge checkpoints of one architecture"
            )
        sources[key] = source
    shape = lead.tensors[sources[wanted.leader]].shape
    floating = lead.tensors[sources[wanted.leader]].dtype in FLOATS
    for key, source in sources.items():
        info = parents[key].tensors[source]
        if info.shape != shape:
            rows_differ = info.shape[1:] == shape[1:] and (is_embedding(source) or is_head(source))
            hint = (
                "; the vocabularies differ: set `tokenizer: base` or `union` to merge by token" if rows_differ else ""
            )
            raise BadInput(
                f"{info.file}: tensor {source} is {list(info.shape)}, but in {lead.folder} it is {list(shape)}{hint}"
            )
        if (info.dtype in FLOATS) != floating:
            raise BadInput(
                f"{info.file}: tensor {source} is {info.dtype}, but floating point in one parent and not in the other"
            )
    return replace(wanted, shape=shape, sources=sources, floating=floating)


def stacked_outputs(recipes: Sequence[Recipe], parents: Mapping[Parent, Checkpoint]) -> list[Output]:
    """List the tensors of the result of recipes with slices.

    Raises BadInput for layers that a model does not have, models of different widths, and different slicings.
    """
    layouts = [[_firsts(part, i) for i, part in enumerate(recipe.slices)] for recipe in recipes]
    if any(layout != layouts[0] for layout in layouts):
        raise BadInput("slices: one pass makes one stack of layers; recipes whose slices differ need a pass each")
    _check_widths(parents, leader_of(recipes[0]))
    slices, last = recipes[0].slices, len(recipes[0].slices) - 1
    out_stack = _stack(parents[leader_of(recipes[0])])[0]
    heads = dict.fromkeys(name for parent in parents.values() for name in parent.tensors if is_head(name))
    before: list[Output] = []
    layers: list[Output] = []
    after: list[Output] = []
    done = 0
    for i, (part, firsts) in enumerate(zip(slices, layouts[0], strict=True)):
        mine = {parent: parents[parent] for parent in firsts}
        names = _outside(mine, heads)
        wanted = [(before, name) for name in names if i == 0 and _is_before(name)]
        wanted += [(after, name) for name in names if i == last and not _is_before(name)]
        for where, name in wanted:
            where.append(output_of(mine, Output(name, (), {}, True, leader_of(part), slice=i)))
        for parent, first in firsts.items():
            _check_range(parents[parent], first, part.count, f"slices[{i}]")
        for offset in range(part.count):
            depth = offset / (part.count - 1) if part.count > 1 else 1.0
            like = Output(f"{out_stack}{done + offset}.", (), {}, True, leader_of(part), depth, i)
            layers += _layer(mine, firsts, offset, like)
        done += part.count
    return before + layers + after


def _layer(
    parents: Mapping[Parent, Checkpoint], firsts: Mapping[Parent, int], offset: int, like: Output
) -> list[Output]:
    """List the tensors of one layer of the result, each like `like` and named after it."""
    own = {parent: f"{_stack(checkpoint)[0]}{firsts[parent] + offset}." for parent, checkpoint in parents.items()}
    endings = dict.fromkeys(
        name.removeprefix(own[parent])
        for parent, checkpoint in parents.items()
        for name in checkpoint.tensors
        if name.startswith(own[parent])
    )
    return [
        output_of(
            parents,
            replace(like, name=like.name + ending, names={parent: start + ending for parent, start in own.items()}),
        )
        for ending in endings
    ]


def _firsts(part: Slice, number: int) -> dict[Parent, int]:
    """Return the first layer that each parent gives, the base first. Raises BadInput for a parent that gives two."""
    given = [(parent_of(model), model.layers or part.layers or (0, 0)) for model in part.models]
    if part.base is not None:
        given.insert(0, (leader_of(part), part.layers or (0, 0)))
    firsts: dict[Parent, int] = {}
    for parent, (first, _) in given:
        if firsts.setdefault(parent, first) != first:
            raise BadInput(f"slices[{number}]: {parent[0]} gives two ranges of layers; a slice takes one of each model")
    return firsts


def _outside(parents: Mapping[Parent, Checkpoint], heads: Iterable[str]) -> list[str]:
    """List the names of tensors in no layer, with the heads of any model of the merge."""
    names = [name for checkpoint in parents.values() for name in checkpoint.tensors if stack_of(name) is None]
    return list(dict.fromkeys([*names, *heads]))


def _is_before(name: str) -> bool:
    """Tell whether a tensor outside of layers comes before them."""
    return is_embedding(name) or (any(part in name for part in BEFORE) and not is_head(name))


def _stack(checkpoint: Checkpoint) -> tuple[str, int]:
    """Return the prefix of the names of a checkpoint's layers, and the number of layers."""
    stacks = layer_counts(checkpoint.tensors)
    if len(stacks) != 1:
        raise BadInput(
            f"{checkpoint.folder}: {len(stacks)} stacks of layers by its tensors' names "
            f"({', '.join(sorted(stacks)) or 'none'}); slices restack models that have one"
        )
    return next(iter(stacks.items()))


def _check_range(checkpoint: Checkpoint, first: int, count: int, where: str) -> None:
    _, there = _stack(checkpoint)
    if first + count > there:
        raise BadInput(
            f"{where}: layers {first}-{first + count - 1} of {checkpoint.folder}, which has layers 0-{there - 1}"
        )


def _check_widths(parents: Mapping[Parent, Checkpoint], leader: Parent) -> None:
    lead = parents[leader]
    for parent in parents.values():
        for key in WIDTHS:
            mine, theirs = lead.config.get(key), parent.config.get(key)
            if mine is not None and theirs is not None and mine != theirs:
                raise BadInput(
                    f"{parent.folder / 'config.json'}: {key} is {theirs}, but {lead.folder} has {mine}: "
                    "layers of one width can be stacked"
                )


def stacked_config(recipe: Recipe, parents: Mapping[Parent, Checkpoint]) -> dict[str, Any]:
    """Return the leader's config with the result's number of layers, and lists of one entry per layer restacked.

    Raises BadInput if the config does not have the number of layers.
    """
    lead = parents[leader_of(recipe)]
    config = dict(lead.config)
    counts = [key for key in COUNTS if isinstance(config.get(key), int)]
    if not counts:
        raise BadInput(f"{lead.folder / 'config.json'}: has none of {', '.join(COUNTS)}; slices set that number")
    for key in counts:
        config[key] = sum(part.count for part in recipe.slices)
    for key, value in lead.config.items():
        if isinstance(value, list) and "layer" in key and len(value) == lead.config[counts[0]]:
            config[key] = [
                entry
                for i, part in enumerate(recipe.slices)
                for entry in _entries(parents[leader_of(part)], key, _firsts(part, i)[leader_of(part)], part.count)
            ]
    return config


def _entries(checkpoint: Checkpoint, key: str, first: int, count: int) -> list[Any]:
    value = checkpoint.config.get(key)
    if not isinstance(value, list) or len(value) < first + count:
        raise BadInput(f"{checkpoint.folder / 'config.json'}: {key}: expected a list with an entry for each layer")
    return value[first : first + count]
