"""Merge checkpoints of one architecture, and count the parameters that the merge discards.

Input: a recipe (our YAML or mergekit's, or a `Recipe`) that names local folders or models of the Hub. Output: a model
in memory, or a new checkpoint folder with its card, its recipe and the audit. Side effects: the new folders, and the
Hub's cache if a model is downloaded. Parents are only read.

`Recipe` states a merge; `check` rejects bad input early; `load` and `load_many` return models in memory; `write` and
`write_many` write checkpoint folders, `write_tokenizer` what these hold besides weights; `audit` counts discarded
parameters. These functions import torch, this package does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from merge.recipe import ModelRef, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "BadInput", "ModelRef", "Recipe", "audit", "check", "load", "load_many", "write", "write_many", "write_tokenizer",
]  # fmt: skip


def check(recipe: Recipe) -> None:
    """Reject what cannot be merged, from configs, headers and tokenizers alone. Raises BadInput."""
    from merge.engine.plan import make_plan

    make_plan([recipe]).close()


def load(recipe: Recipe, device: str = "cpu", place: str | None = None) -> PreTrainedModel:
    """Return the merged model in memory, in eval mode; its tokenizer is in the base folder. Raises BadInput."""
    from merge.engine.in_memory import load

    return load(recipe, device, place)


def load_many(
    recipes: Sequence[Recipe], device: str = "cpu", **options: Any
) -> Iterator[tuple[Recipe, PreTrainedModel]]:
    """Yield (recipe, model) for recipes over one base, each parent read once per batch.

    See merge.engine.in_memory.load_many.
    """
    from merge.engine.in_memory import load_many

    return load_many(recipes, device, **options)


def write(recipe: Recipe, out_dir: str | Path, **options: Any) -> Path:
    """Merge into a new checkpoint folder, published by rename; see merge.output.writer.write_many for the options."""
    from merge.output.writer import write

    return write(recipe, out_dir, **options)


def write_many(recipes: Sequence[Recipe], out_dirs: Sequence[str | Path], **options: Any) -> list[Path]:
    """Merge each recipe into its own new folder, in one pass over the parents."""
    from merge.output.writer import write_many

    return write_many(recipes, out_dirs, **options)


def write_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Write the tokenizer that the merge has, with config, into a folder; see merge.output.writer.write_tokenizer."""
    from merge.output.writer import write_tokenizer

    write_tokenizer(recipe, folder)


def audit(recipe: Recipe) -> dict[str, Any]:
    """Count what the merge discards, without keeping its weights; the shares are defined in merge.auditing.

    JSON-serialisable.
    """
    from merge.auditing import audit_many

    return audit_many([recipe])[0]
