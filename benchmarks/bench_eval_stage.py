"""What bench_eval.py runs of ours, in processes of their own.

    python benchmarks/bench_eval_stage.py prepare|score FOLDER CHECKPOINTS

prepare: the corpus and items of experiment=tiny, the same as tasks for the lm_eval command line, and checkpoints. What
is there is kept. score: the eval stage of every checkpoint, by the pipeline's executor, into a store of its own. Beside
the scores it leaves each document's log-likelihoods, for the comparison; their time counts as ours.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import run_plan, sweep
from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.stages.stage import Stage
from pipeline.stages.training import given_model
from pipeline.store import Store

BASE = Path("models/tiny-base")
NOISE = 0.02  # of a tensor's standard deviation


def evaluation(folder: Path) -> Stage:
    """The eval stage of the base in experiment=tiny, whole texts read within the model's context as lm_eval does."""
    sweeps = sweep.expand(["experiment=tiny", f"store={folder}/store"], multirun=False)
    stage = run_plan.plan(sweeps).cells[0].evals["base"]
    return replace(stage, settings=stage.settings.replace(trained_length=None))


def executor(store: Path, stages: Sequence[Stage]) -> Executor:
    return Executor(Store(store), stages, Journal(store / "journal.jsonl"))


def prepare(folder: Path, checkpoints: int) -> None:
    """Data, tasks and checkpoints."""
    from eval.task_set import read_documents, read_items, truncate

    stage = evaluation(folder)
    (folder / "store").mkdir(parents=True, exist_ok=True)
    makes = executor(folder / "store", [parent for parent in stage.parents.values() if not parent.given])
    items, corpus = (makes.materialize(stage.parents[role]) for role in ("items", "corpus"))
    shutil.rmtree(folder / "tasks", ignore_errors=True)  # of an experiment that asked something else
    (folder / "tasks").mkdir()
    limit, split = stage.settings.limit, stage.settings.split
    for path in (items / "tasks").glob(f"*.{split}.jsonl"):
        write_task(folder, path.name.split(".")[0], "items.yaml", read_items(path)[:limit])
    for path in (corpus / "text").glob(f"*.{split}.jsonl"):
        documents = [truncate(row, stage.settings.max_chars) for row in read_documents(path)[:limit]]
        write_task(folder, f"bits_per_byte_{path.name.split('.')[0]}", "bits_per_byte.yaml", documents)
    for number in range(checkpoints):
        write_checkpoint(folder / "checkpoints" / f"{number:02}", number)


def write_task(folder: Path, name: str, template: str, rows: Sequence[Any]) -> None:
    """A task as a user of lm_eval has it: a YAML, and its documents as JSONL."""
    import yaml

    from eval.task_set import TEMPLATES

    data = folder / "tasks" / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    described = yaml.safe_load((TEMPLATES / template).read_text(encoding="utf-8"))
    described |= {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"data": str(data)}}}
    (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")


def write_checkpoint(out: Path, seed: int) -> None:
    """The base with noise: other weights, so that no two checkpoints answer alike."""
    if out.exists():
        return
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(BASE, out)
    tensors, generator = load_file(BASE / "model.safetensors"), torch.Generator().manual_seed(seed)
    for tensor in tensors.values():
        tensor += torch.randn(tensor.shape, generator=generator) * tensor.std() * (NOISE if seed else 0)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def score(folder: Path, checkpoints: int) -> None:
    """Every checkpoint by the eval stage."""
    os.environ["TQDM_DISABLE"] = "1"
    asked, store = evaluation(folder), folder / "ours" / "store"
    store.mkdir(parents=True)
    for kind in ("corpus", "items"):
        (store / kind).symlink_to(folder / "store" / kind)
    stages = []
    for number in range(checkpoints):
        path = folder / "checkpoints" / f"{number:02}"
        given = given_model(path.name, str(path), path.name)
        stages.append(replace(asked, slug=path.name, parents={**asked.parents, "checkpoint": given}))
    makes, tokens = executor(store, stages), count_tokens()
    for stage in stages:
        logged = keep_loglikelihoods()
        makes.compute([stage], stop_at_failure=True)
        (folder / "ours" / f"{stage.slug}.json").write_text(json.dumps(logged), encoding="utf-8")
    (folder / "ours" / "tokens").write_text(json.dumps(tokens))


def count_tokens() -> dict[str, int]:
    """Tokens that go through models from here on: in packed rows, and had each request gone by itself."""
    from eval.language_model import PackedLM
    from eval.packing import PackedRow

    tokens = {"packed": 0, "alone": 0}
    packs = PackedLM._packs

    def count(lm: PackedLM, requests: Sequence[Any]) -> list[PackedRow]:
        found = packs(lm, requests)
        tokens["packed"] += sum(pack.width for pack in found)
        tokens["alone"] += sum(len(pack.prompt) + len(part) - 1 for pack in found for part in pack.continuations)
        return found

    PackedLM._packs = count  # type: ignore[method-assign]
    return tokens


def keep_loglikelihoods() -> dict[str, list[list[float]]]:
    """By task, those of every document that is scored from here on, choice by choice."""
    from eval import harness, records

    kept: dict[str, list[list[float]]] = {}

    def keep(name: str, entry: Any, logged: Any, unlabelled: Any = ()) -> Any:
        rows = records.first_filter(logged)
        answers = [row["filtered_resps"] for row in rows]
        kept[name] = [[float(pair[0]) for pair in a] if isinstance(a[0], tuple) else [float(a[0])] for a in answers]
        return records.task_records(name, entry, logged, unlabelled)

    harness.task_records = keep
    return kept


if __name__ == "__main__":
    {"prepare": prepare, "score": score}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
