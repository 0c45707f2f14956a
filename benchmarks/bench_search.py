"""A search over the weights of a merge: seconds per trial against seconds per scoring of one model.

    python benchmarks/bench_search.py [--model models/tiny-base | --smollm2-size] [--trials 30] [--items 60]

Base and two parents are one model with seeded noise; --smollm2-size makes a random one of 135M parameters. The stage
`tune` of experiment=test runs in this process: each trial proposes three weights, merges in memory and scores the
Chichewa items of dev. In turns with it, the same items are scored by the base, which is loaded once. Medians of the
clock and of this process's CPU time, without the first of each. proposing: of TPE alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import run_plan, sweep
from pipeline.execute import Executor, Job
from pipeline.journal import Journal
from pipeline.search import Search
from pipeline.stages import scoring, tuning
from pipeline.stages.stage import Stage
from pipeline.store import Store

METHOD = "task_arithmetic"
SPACE = "{models.ct.weight: [0.0, 1.5], models.sft.weight: [0.0, 1.5], lambda: [0.3, 1.5]}"
NOISE = 0.02  # of a tensor's standard deviation
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}


def write_models(folder: Path, model: Path, smollm2_size: bool) -> dict[str, Path]:
    """Write base, CT and SFT: the model, or a random one with its tokenizer, and two copies with noise."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    places = {name: folder / name for name in ("model", "ct", "sft")}
    shutil.copytree(model, places["model"])
    if smollm2_size:
        config = AutoConfig.from_pretrained(model)
        config.update(SMOLLM2)
        config.head_dim = config.hidden_size // config.num_attention_heads
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(places["model"])
    for seed, name in enumerate(("ct", "sft")):
        shutil.copytree(places["model"], places[name])
        torch.manual_seed(seed)
        file = places[name] / "model.safetensors"
        weights = {key: w + NOISE * w.std() * torch.randn_like(w) for key, w in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
    return places


def tune_stage(folder: Path, models: dict[str, Path], trials: int, items: int) -> Stage:
    """Return the stage that searches, over what is given."""
    overrides = [
        *("experiment=test", "model=folder", f"model.path={models['model']}", f"ct.source={models['ct']}"),
        *(f"sft.source={models['sft']}", "eval.families=[next]", f"eval.items={items}", f"eval.tune_limit={items}"),
        *("eval.batch_tokens=8192", "merge=none", f"merge.search={{sampler: tpe, trials: {trials}}}"),
        f"+merge.methods.{METHOD}={{recipe: {{method: {METHOD}}}, space: {SPACE}}}",
        *(f"store={folder}/store", "compute.threads=1"),
    ]
    return run_plan.plan(sweep.expand(overrides, multirun=False)).cells[0].chosen[METHOD]


def measure(folder: Path, stage: Stage, models: dict[str, Path]) -> dict[str, Any]:
    """Run the search; after each trial, score the base. Return medians in seconds."""
    from eval import harness, loading

    (folder / "store").mkdir(exist_ok=True)
    data = [parent for parent in stage.parents.values() if not parent.given]
    computes = Executor(Store(folder / "store"), data, Journal(folder / "store" / "journal.jsonl"))
    folders = {**models, **{role: computes.materialize(stage.parents[role]) for role in ("items", "corpus")}}
    job = Job(stage, folder / "out", folder / "work", folders)
    settings = stage.settings
    dev = scoring.task_set(folders["items"], folders["corpus"], "dev", settings.limit, settings.max_chars)
    tasks = tuning.selection_tasks(dev, settings.language, settings.metric)
    how = scoring.how(settings, job.options)
    model, tokenizer = loading.load_checkpoint(models["model"], device="cpu", dtype=settings.dtype)
    of_trials: list[tuple[float, float]] = []
    of_scorings: list[tuple[float, float]] = []
    started = clock()

    def trial_done(event: str, **fields: Any) -> None:
        nonlocal started
        of_trials.append(since(started))
        before = clock()
        harness.evaluate(model, tokenizer, tasks, **how)
        of_scorings.append(since(before))
        print(f"trial {fields['text']}: {of_trials[-1][0]:.2f} s, scoring {of_scorings[-1][0]:.2f} s", file=sys.stderr)
        started = clock()

    job.emit = trial_done
    for place in (job.out, job.work):
        place.mkdir()
    tuning.run_tune(job)
    found: dict[str, Any] = {"parameters": model.num_parameters(), "trials": settings.trials, "items": settings.limit}
    for name, timed in (("trial", of_trials), ("scoring", of_scorings)):
        for number, unit in enumerate(("s", "cpu_s")):
            found[f"{name}_{unit}"] = round(statistics.median(one[number] for one in timed[1:]), 3)
    found["ratio"] = round(found["trial_s"] / found["scoring_s"], 2)
    found["cpu_ratio"] = round(found["trial_cpu_s"] / found["scoring_cpu_s"], 2)
    return found | {"proposing_s": proposing(settings)}


def proposing(settings: Any) -> float:
    """Return the median seconds of a proposal."""
    search, times = Search(settings.search.space, settings.search.sampler, 0, True), []
    for _ in range(settings.trials):
        started = clock()
        weights = search.ask()
        search.tell(-sum((value - 1) ** 2 for value in weights.values()))
        times.append(since(started)[0])
    return round(statistics.median(times), 4)


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/tiny-base"))
    parser.add_argument("--smollm2-size", action="store_true")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--items", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        models = write_models(folder, options.model, options.smollm2_size)
        stage = tune_stage(folder, models, options.trials, options.items)
        print(json.dumps(measure(folder, stage, models)))


if __name__ == "__main__":
    main()
