"""A preview of a merge: what it would read, write and need."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from merge.recipe import Recipe


def describe(recipes: Sequence[Recipe], memory: int, out_dirs: Sequence[Path]) -> tuple[list[str], str | None]:
    """Describe what merges into `out_dirs` would read, write and need, and why they cannot be written, if so.

    All checks that need no weights come first. Without out_dirs, disk space is that of the working directory.
    """
    from merge.io.config_differences import differences, places
    from merge.io.out_folder import OutFolder
    from merge.io.writer import METADATA, METADATA_OF_TENSOR, plan_sidecars
    from merge.stream.dtypes import out_dtype
    from merge.stream.tensor_plan import make_plan

    nearest = [OutFolder(out_dir).check() for out_dir in out_dirs] or [Path.cwd()]
    plan = make_plan(recipes)
    try:
        names = ", ".join(sorted({recipe.method for recipe in recipes}))
        lines = [f"method    {names} ({len(recipes)} merge(s) in one pass)"]
        for parent in plan.parents.values():
            infos = parent.tensors.values()
            lines.append(
                f"read      {parent.folder}: {len(infos)} tensors, {sum(info.nbytes for info in infos) / 1e9:.2f} GB"
            )
        lines += [f"note      {line}" for line in differences(plan, places(plan))]
        beside = sum(file.stat().st_size for file in plan_sidecars(plan).values())
        beside += METADATA + METADATA_OF_TENSOR * len(plan.outputs)
        size = sum(
            beside + sum(output.numel * out_dtype(recipe, plan, output).itemsize for output in plan.outputs)
            for recipe in recipes
        )
        free = shutil.disk_usage(nearest[0]).free
        lines.append(
            f"write     {len(recipes)} × {len(plan.outputs)} tensors, {size / 1e9:.2f} GB; "
            f"{free / 1e9:.1f} GB free{'' if free >= size else ': NOT ENOUGH'}"
        )
        lines.append(f"memory    torch, slices of a few MB, and up to {memory / 1e6:.0f} MB to select magnitudes")
        if free >= size:
            return lines, None
        lacking = f"{free / 1e9:.2f} GB free where {size / 1e9:.2f} GB are needed"
        return lines, f"{(out_dirs or nearest)[0]}: {lacking}; free some, or merge elsewhere"
    finally:
        plan.close()
