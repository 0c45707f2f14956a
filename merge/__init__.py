"""Merge checkpoints of one architecture, and say what was thrown away on the way.

In: a recipe (YAML of ours or of mergekit, or a `Recipe`) that names local folders or models of the hub. Out: a model in
memory, or a new checkpoint folder with its card, its recipe and the audit. Touched: the new folders, and the hub's
cache where a model has to be fetched; the parents are only read.

`Recipe` states a merge; `check` refuses early; `load` and `load_many` give models in memory; `write` and `write_many`
make checkpoint folders; `audit` counts what is discarded. Torch is imported by these functions, not by this package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from merge.model_ref import ModelRef
from merge.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BadInput", "ModelRef", "Recipe", "audit", "check", "load", "load_many", "write", "write_many"]


def check(recipe: Recipe) -> None:
    """Refuse, from configs, headers and tokenizers alone, what cannot be merged. Raises BadInput."""
    from merge.stream.tensor_plan import make_plan

    make_plan([recipe]).close()


def load(recipe: Recipe, device: str = "cpu", place: str | None = None) -> PreTrainedModel:
    """The merged model in memory, in eval mode; its tokenizer is the base folder's. Raises BadInput."""
    from merge.stream.in_memory import load

    return load(recipe, device, place)


def load_many(
    recipes: Sequence[Recipe], device: str = "cpu", **options: Any
) -> Iterator[tuple[Recipe, PreTrainedModel]]:
    """Yield (recipe, model) for recipes over one base, each parent read once per batch.

    See merge.stream.in_memory.load_many.
    """
    from merge.stream.in_memory import load_many

    return load_many(recipes, device, **options)


def write(recipe: Recipe, out_dir: str | Path, **options: Any) -> Path:
    """Merge into a new checkpoint folder, published by rename; see merge.io.writer.write_many for the options."""
    from merge.io.writer import write

    return write(recipe, out_dir, **options)


def write_many(recipes: Sequence[Recipe], out_dirs: Sequence[str | Path], **options: Any) -> list[Path]:
    """Merge each recipe into its own new folder, in one pass over the parents."""
    from merge.io.writer import write_many

    return write_many(recipes, out_dirs, **options)


def audit(recipe: Recipe) -> dict[str, Any]:
    """Count what the merge discards, without keeping its weights; the shares are defined in merge.auditing.

    JSON-serialisable.
    """
    from merge.auditing import audit_many

    return audit_many([recipe])[0]
