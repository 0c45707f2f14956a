"""Checks of what a sweep needs besides its inputs: tasks that lm-eval loads, and disk space."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub as model_hub
from common.errors import BadInput, listed
from common.validation import read_json
from pipeline.check.finding import Finding, guarded
from pipeline.config import Config
from pipeline.cost import estimate
from pipeline.report import hypotheses
from pipeline.stages.stage import Stage

if TYPE_CHECKING:
    from pipeline.run_plan import RunPlan
    from pipeline.stages.cell import Cell

SPARE = 200 * 10**6  # bytes that a run needs besides its stages


def check_tasks(cell: Cell) -> Iterator[Finding]:
    """Check that every lm-eval task loads, with its data, and that the model has room for what it generates."""
    config = cell.config
    folder = None if config.eval.include_path is None else Path(config.eval.include_path)
    names, shots = config.eval.tasks, config.eval.fewshot
    together = isinstance(shots, dict) or not names  # examples by task may name any of them
    loaded: dict[str, Any] = {}
    for some in [tuple(names)] if together else [(name,) for name in names]:
        if some or folder:
            yield from guarded(load_tasks, folder, some, context_of(config), shots, loaded)
    if loaded:
        yield Finding(False, f"prompts     {prompts_in_words(config, loaded)}", fact=True)


def load_tasks(
    folder: Path | None,
    names: Sequence[str],
    context: int | None,
    fewshot: int | Mapping[str, int] | None,
    found: dict[str, Any],
) -> None:
    """Load tasks by their names into `found`; all of a user's folder if no name is given.

    context: tokens that the model reads, None where it is not known. fewshot: as in eval.task_set.prepare.
    """
    from eval import task_checks, task_set

    loaded = task_set.load_tasks(folder, names, fewshot)
    task_checks.check_generation_length(loaded, context)
    found |= loaded


def prompts_in_words(config: Config, loaded: Mapping[str, Any]) -> str:
    """Describe what tasks of lm-eval ask a checkpoint."""
    from eval.task_checks import generated_tokens

    ways = {
        "none": "plain",
        "auto": "by the chat template where there is one",
        "both": "plain and by the chat template",
    }
    parts = []
    for name, task in loaded.items():
        count = sum(1 for _ in task.doc_iterator(limit=config.eval.limit))
        shots, length = task.get_config("num_fewshot") or 0, generated_tokens(task)
        examples = f", {shots} example{'s' * (shots != 1)} each" if shots else ""
        generated = f", up to {count * length:,} tokens generated ({length} each)" if length else ""
        parts.append(f"{name}: {count:,}{examples}{generated}")
    return f"{ways[config.eval.chat]}; {'; '.join(parts)}"


def context_of(config: Config) -> int | None:
    """Return the tokens that the model reads, by its recipe or its config.json; None if that is not on this machine."""
    from eval.task_checks import CONTEXT_KEYS

    if config.model.recipe is not None and config.model.path is None:
        return config.model.recipe.context
    folder = model_hub.local_folder(config.model.path)
    if folder is None or not (folder / "config.json").is_file():
        return None
    stated = read_json(folder / "config.json")
    inner = stated.get("text_config")
    parts = [inner, stated] if isinstance(inner, dict) else [stated]
    found = (part[key] for part in parts for key in CONTEXT_KEYS if isinstance(part.get(key), int))
    return next(found, None)


def check_disk(plan: RunPlan, wanted: Sequence[Stage] | None = None) -> Iterator[Finding]:
    """Check that the store can be written, and that its disk has space for the run at its peak.

    wanted: the stages that will be computed, if not all that the store lacks.
    """
    store, cells = plan.store, [cell for cell in plan.cells if cell.stages]
    keys = {stage.key for stage in (plan.stages if wanted is None else wanted)}
    done = {stage.key for stage in plan.stages if store.find(stage) or stage.key not in keys}
    missing = [stage for stage in plan.stages if stage.key not in done]
    existing = next(folder for folder in (store.root.absolute(), *store.root.absolute().parents) if folder.exists())
    if missing and not os.access(existing, os.W_OK):
        raise BadInput(
            f"store={store.root}: no write permission in {existing}, and {missing[0]} is missing. Choose another store."
        )
    if not any(stage.type.trained for stage in missing):
        return
    rows = estimate.rows(cells, done, estimate.NoRates(), {})
    need = (
        SPARE
        + estimate.disk_peak(rows, estimate.given_bytes(cells))
        - sum(row.work.written for row in rows if row.done)
    )
    free = shutil.disk_usage(existing).free
    if free < need:
        raise BadInput(
            f"store={store.root}: {free / 1e9:,.1f} GB free, but this run may need {need / 1e9:,.1f} GB at its peak. "
            "Free some space or choose another disk."
        )
    yield from ()


def check_hypotheses(plan: RunPlan) -> Iterator[Finding]:
    """Check hypotheses/<experiment>.yaml, if there is one: it can be read, names methods that exist, is committed."""
    configs = [cell.config for cell in plan.cells]
    path = hypotheses.find(plan.config.name)
    if path is None:
        return
    found = hypotheses.read(path)
    methods = [
        hypotheses.in_regime(name, regime)
        for config in configs
        for name in (*config.eval.baselines, *config.merge.methods)
        for regime in dict.fromkeys((None, config.regime))
    ]
    budgets = {config.ct.tokens for config in configs}
    for name, why in hypotheses.without_data(found, list(dict.fromkeys(methods)), budgets).items():
        yield Finding(False, f"{path}: {name}: this run gives no data for it: {why}")
    times = hypotheses.commit_times(path)
    if times is None:
        yield Finding(
            False,
            f"{path}: not in a git repository, so no report can show when it was written.",
        )
    elif new := [name for name, committed in times.items() if committed is None]:
        yield Finding(
            False,
            f"{path}: {listed(new)}: its present text is not committed. "
            "Commit it before the run, or it gets no verdict.",
        )
