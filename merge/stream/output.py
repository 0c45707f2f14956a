"""One tensor of a merge's result: where it comes from in each parent, and whether these fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.errors import BadInput
from merge.io.checkpoint import FLOATS, Checkpoint
from merge.io.token_tensors import is_embedding, is_head
from merge.model_ref import ModelRef
from merge.recipe import Recipe

Parent = tuple[Path, Path | None]  # folder, adapter


@dataclass(frozen=True)
class Output:
    """One tensor of the result.

    sources: the tensor of each parent that it is made of. leader: the base, or the first model where there is none.
    depth: 0 in the first layer (of its slice) and outside of layers, 1 in the last. slice: number of the recipes' slice
    that it is of. names: what parents call it where layers are restacked (a source may be the embedding instead).
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
        """What a parent calls it."""
        return self.names.get(parent, self.name)

    @property
    def numel(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size


def parent_of(model: ModelRef) -> Parent:
    return (model.path, model.adapter)


def leader_of(recipe: Recipe) -> Parent:
    """The base; where there is none the first model, of the first slice where there are slices."""
    if recipe.base is not None:
        return (recipe.base, None)
    return parent_of((recipe.slices[0] if recipe.slices else recipe).models[0])


def output_of(parents: Mapping[Parent, Checkpoint], wanted: Output) -> Output:
    """`wanted` with its shape, and its source in each of `parents`. Raises BadInput where they do not fit."""
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
