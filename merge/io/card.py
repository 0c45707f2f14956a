"""The model card of a written merge, ready to publish: it names models of the Hub by id, and no local paths."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from common import hub
from common.files import sha256
from merge.auditing import Audit
from merge.io.config_differences import differences
from merge.io.short_names import pinned, short_names
from merge.recipe import Recipe
from merge.stream.tensor_plan import Plan

SHARES = ("share_trimmed", "share_in_conflict", "share_lost_in_conflict", "norm_lost")


def render(
    title: str,
    plan: Plan,
    recipe: Recipe,
    files: Sequence[Path],
    audit: Audit | None,
    checksums: bool = True,
    shard_bytes: int | None = None,
) -> str:
    """Render Markdown with a YAML head for model hubs: parents, method, settings, checksums, how to rebuild it.

    Local folders are named by the last parts of their paths, as many as distinguish them; merge.yml has the full paths.
    The Hub accepts only its own names as base_model. shard_bytes: size of the largest file, if it was set.
    """
    paths = [str(path) for parent in plan.parents for path in parent if path is not None]
    names = short_names(paths)
    known = [names[path] for path in paths if path.startswith(hub.PREFIX)]
    parents = {"base_model": list(dict.fromkeys(known))} if known else {}
    head = yaml.safe_dump({**parents, "tags": ["merge", "slackmerge"], "library_name": "transformers"}, sort_keys=False)
    lines = [f"---\n{head}---\n", f"# {title}\n", f"A merge by `{recipe.method}`."]
    if recipe.base is not None:
        lines.append(f"Base: `{names[str(recipe.base)]}`.")
    models = [f"{model.name} (`{names[str(model.path)]}`{_with(model.adapter, names)})" for model in recipe.models]
    lines.append(f"Models: {', '.join(models)}.\n")
    settings = yaml.safe_dump(_named(recipe.to_dict(), names), sort_keys=False)
    lines.append(
        "## How to make it again\n\n    slackmerge merge --from-card README.md OUT_DIR"
        f"{'' if shard_bytes is None else f' --shard-size {shard_bytes}B'}\n\n"
        f"by this recipe, in which paths are shortened:\n\n```yaml\n{settings}```\n"
    )
    if settings_that_differ := differences(plan, names):
        lines.append("## Settings in which the models differ\n")
        lines += [f"- {line}" for line in settings_that_differ]
        lines.append("")
    if audit is not None and (rows := audit.report()["models"]):
        lines.append(
            "## What was discarded\n\n"
            "| model | trimmed | in conflict | lost in conflict | norm lost |\n|---|---|---|---|---|"
        )
        for name, row in rows.items():
            cells = ["–" if row[key] is None else f"{row[key]:.1%}" for key in SHARES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines + (_checksums(plan, names, files) if checksums else [])) + "\n"


def _with(adapter: Path | None, names: dict[str, str]) -> str:
    return f" with the LoRA `{names[str(adapter)]}`" if adapter is not None else ""


def _named(recipe: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a recipe with short names instead of folders' paths."""

    def short(entry: dict[str, Any]) -> dict[str, Any]:
        own = {key: names[entry[key]] for key in ("path", "adapter", "base") if key in entry}
        return entry | {key: pinned(entry[key]) or name for key, name in own.items()}

    parts = {"slices": [short(part) for part in recipe["slices"]]} if "slices" in recipe else {}
    return short(recipe) | {"models": {name: short(entry) for name, entry in recipe["models"].items()}} | parts


def _checksums(plan: Plan, names: dict[str, str], files: Sequence[Path]) -> list[str]:
    """Compute checksums of every file read, by its folder's short name, and of every file written."""
    read: dict[Path, str] = {}
    for (path, adapter), parent in plan.parents.items():
        for file in sorted(parent.files):
            folder = adapter if adapter is not None and file.name in hub.ADAPTERS else path
            read[file] = f"{names[str(folder)]}/{file.name}"
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256, [*read, *files]))
    lines = ["## Checksums (sha256)\n"]
    lines += [f"- read `{name}`: {digest}" for name, digest in zip(read.values(), digests, strict=False)]
    written = zip(files, digests[len(read) :], strict=True)
    return lines + [f"- written `{file.name}`: {digest}" for file, digest in written]
