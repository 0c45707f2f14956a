"""Rows of a chat template's tokens, taken whole from one model: a merge of turn marks is a mark that no model knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from common.errors import BadInput
from merge.io.template_tokens import template_tokens
from merge.io.token_tensors import row_count, token_tensors
from merge.io.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from merge.recipe import Recipe
    from merge.stream.output import Output, Parent
    from merge.stream.pieces import Piece
    from merge.stream.tensor_plan import Plan


@dataclass(frozen=True)
class SpecialRows:
    """parent: the model that gives them. rows: their numbers in the result. tables: tensors with a row a token."""

    parent: Parent
    rows: torch.Tensor
    tables: frozenset[str]

    def put(self, values: torch.Tensor, output: Output, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """A merged slice [rows, columns] with the model's own rows in it; a copy where any is."""
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
    """By the name that recipes give in `special_rows`, which every recipe of the plan means the same by."""
    found: dict[str, SpecialRows] = {}
    for recipe in plan.recipes:
        name = recipe.special_rows
        if name is not None and name not in found:
            found[name] = _of_model(plan, source_of(recipe, name))
        elif name is not None and found[name].parent != source_of(recipe, name):
            raise BadInput(f"special_rows: {name} is another model in another recipe. Merge them one by one.")
    return found


def source_of(recipe: Recipe, name: str) -> Parent:
    """The model of this name."""
    from merge.stream.output import leader_of, parent_of

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
