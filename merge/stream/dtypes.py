"""The dtypes of a tensor's arithmetic and of what is written."""

from __future__ import annotations

import functools

import torch

from merge.io.checkpoint import torch_dtype
from merge.recipe import Recipe
from merge.stream.output import Output, parent_of
from merge.stream.tensor_plan import Plan


def compute_dtype(recipe: Recipe, plan: Plan, output: Output) -> torch.dtype:
    """The dtype of the arithmetic; `inputs`: what the parents' dtypes promote to, as mergekit has it."""
    if recipe.compute_dtype != "inputs":
        return getattr(torch, recipe.compute_dtype)
    recipe = recipe.at(output.slice)
    parents = [parent_of(model) for model in recipe.models] + ([output.leader] if recipe.base is not None else [])
    codes = [plan.parents[parent].tensors[output.sources[parent]].dtype for parent in parents]
    return functools.reduce(torch.promote_types, map(torch_dtype, codes))


def out_dtype(recipe: Recipe, plan: Plan, output: Output) -> torch.dtype:
    """The dtype that the result is rounded to, once, to nearest even; buffers keep their own."""
    base_dtype = torch_dtype(plan.parents[output.leader].tensors[output.sources[output.leader]].dtype)
    if not output.floating or recipe.out_dtype == "base":
        return base_dtype
    return compute_dtype(recipe, plan, output) if recipe.out_dtype == "compute" else getattr(torch, recipe.out_dtype)
