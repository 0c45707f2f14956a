"""The model card of a written merge."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from common import hub
from common.files import sha256
from merge.auditing import Audit
from merge.recipe import Recipe
from merge.stream.tensor_plan import Plan


def render(
    title: str, plan: Plan, recipe: Recipe, files: Sequence[Path], audit: Audit | None, checksums: bool = True
) -> str:
    """Markdown with a YAML head as model hubs read it: parents, method, settings, checksums, how to make it again."""
    parents = [model.repo if (model := hub.parse(str(folder), "path")) else str(folder) for folder, _ in plan.parents]
    head = yaml.safe_dump(
        {"base_model": parents, "tags": ["merge", "slackmerge"], "library_name": "transformers"}, sort_keys=False
    )
    settings = yaml.safe_dump(recipe.to_dict(), sort_keys=False)
    lines = [f"---\n{head}---\n", f"# {title}\n", f"A merge by `{recipe.method}`."]
    if recipe.base is not None:
        lines.append(f"Base: `{recipe.base}`.")
    lines.append(f"Models: {', '.join(f'{model.name} (`{model.path}`)' for model in recipe.models)}.\n")
    lines.append(
        "## How to make it again\n\n    python -m merge merge.yml OUT_DIR\n\n"
        f"with merge.yml:\n\n```yaml\n{settings}```\n"
    )
    if audit is not None and (rows := audit.report()["models"]):
        lines.append(
            "## What was discarded\n\n"
            "| model | trimmed | in conflict | lost in conflict | norm lost |\n|---|---|---|---|---|"
        )
        for name, row in rows.items():
            cells = [row[key] for key in ("share_trimmed", "share_in_conflict", "share_lost_in_conflict", "norm_lost")]
            lines.append(f"| {name} | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |")
        lines.append("")
    if checksums:
        inputs = sorted({info.file for parent in plan.parents.values() for info in parent.tensors.values()})
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(sha256, [*inputs, *files]))
        lines.append("## Checksums (sha256)\n")
        lines += [f"- read `{file}`: {checksum}" for file, checksum in zip(inputs, digests, strict=False)]
        lines += [
            f"- written `{file.name}`: {checksum}" for file, checksum in zip(files, digests[len(inputs) :], strict=True)
        ]
    return "\n".join(lines) + "\n"
