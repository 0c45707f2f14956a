"""The steps of `python -m tests.gpu`, each a function that returns numbers; in the order in which faults are cheapest.

A step raises Missing, with what is missing, where it cannot run, and AssertionError where a number is wrong.
`python -m tests.gpu.steps STEP DEVICE FOLDER OUT` runs one and writes its result as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

from tests.gpu.prepared import Prepared, prepare, settings_of
from train.settings import Compute

ROOT = Path(__file__).parents[2]
CLOSE = 1e-2  # largest difference of a weight, or share of a loss, between two ways to compute the same
NATS = {"float32": 1e-3, "bfloat16": 0.5}  # of one choice, between packed rows and lm_eval
PLANNED = 1.1  # measured memory over the plan's that is still allowed: the plan fills 0.9 of a GPU
Numbers = dict[str, Any]


class Missing(Exception):
    """What a step needs and this machine lacks."""


def devices() -> int:
    """How many CUDA devices there are."""
    import torch

    return torch.cuda.device_count()


def need(device: str, count: int = 1) -> None:
    """Raise Missing without enough CUDA devices; on a CPU nothing is needed."""
    if device == "cuda" and (found := devices()) < count:
        raise Missing(f"needs {count} CUDA device{'s' if count > 1 else ''}, found {found}")


def need_cuda(device: str, what: str) -> None:
    """Raise Missing on a CPU, and without a CUDA device."""
    if device != "cuda":
        raise Missing(f"{what} needs a CUDA device, got --device {device}")
    need(device)


def pytest_gpu(device: str, folder: Path, count: int | None) -> Numbers:
    """Tests marked `gpu`, with `count` devices visible (None: all)."""
    need_cuda(device, "pytest -m gpu")
    if count is None:
        need(device, 2)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(devices())))
    seen = ",".join(visible.split(",")[:count])
    report = folder / f"pytest-{count or 'all'}.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", "tests/train", "tests/eval",
         "tests/merge", "tests/gpu"],
        cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": seen}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    from xml.etree import ElementTree

    suite = next(iter(ElementTree.parse(report).getroot().iter("testsuite")))
    numbers = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    assert done.returncode == 0, f"pytest: {numbers}; {done.stdout.strip().splitlines()[-1]}"
    return {"devices": seen, **numbers}


def trained(
    made: Prepared,
    name: str,
    compute: Compute,
    blocks: str = "ct_blocks",
    stop: bool = False,
    **changes: Any,
) -> Path:
    """A training in processes of its own, as the pipeline starts them; returns its folder.

    stop: preempt it after its first step, then start it again.
    """
    folder = made.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of(made).replace(**changes)
    job = {
        "model": str(made.model), "blocks": str(made.folder / blocks), "settings": settings.model_dump(),
        "out": str(folder / "out"), "work": str(folder / "work"), "compute": compute.model_dump(),
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    launch = [sys.executable]
    if compute.processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={compute.processes}"]
    command = [*launch, "-m", "train", str(folder / "job.json")]
    if stop:
        (folder / "stop").touch()
        first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert first.returncode == 75, f"the preempted training ended with {first.returncode}: {tail(first.stderr)}"
        (folder / "stop").unlink()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: exit code {done.returncode}: {tail(done.stderr)}"
    return folder / "out"


def tail(text: str) -> str:
    """The line of an output that most likely names the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line and "ChildFailedError" not in line]
    return (named or lines or ["no output"])[-1][:200]


def apart(first: Path, second: Path) -> float:
    """The largest difference of a weight of two trainings."""
    from safetensors.torch import load_file

    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    return max(float((tensor.float() - other[name].float()).abs().max()) for name, tensor in one.items())


def two_processes(device: str, folder: Path, strategy: str) -> Numbers:
    """Two processes of a strategy against one process, float32 passes."""
    need(device, 2)
    if strategy.startswith("zero"):
        lacking = [] if find_spec("deepspeed") else ["deepspeed"]
        compiler = "nvcc" if device == "cuda" else "g++"  # DeepSpeed builds an extension for CPU processes
        if device == "cpu" and which(compiler) is None:
            lacking.append(compiler)
        if lacking:
            raise Missing(f"strategy {strategy} needs {' and '.join(lacking)}")
    made = prepare(folder, device)
    common: Numbers = {"device": device, "threads": 1, "micro_batch": 1}
    whole = made.folder / "one-process" / "out"
    if not (whole / "model").is_dir():
        whole = trained(made, "one-process", Compute(**common))
    many = trained(made, f"two-{strategy}", Compute(strategy=strategy, processes=2, **common))
    difference = apart(whole, many)
    assert difference < CLOSE, f"weights differ by {difference:.1e}, expected less than {CLOSE}"
    return {"largest_difference": difference}


def first_loss(made: Prepared, name: str, compute: Compute, precision: str) -> float:
    """The loss of the first step on SFT blocks."""
    out = trained(made, name, compute, "sft_blocks", tokens=settings_of(made).batch_tokens, precision=precision)
    return float(json.loads((out / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])["loss"])


def attention(device: str, folder: Path) -> Numbers:
    """The first step's loss on the same packed SFT blocks by each attention, with micro-batches of 1 and 4.

    On a GPU sdpa and flash_attention_2 in bf16; on a CPU sdpa and eager in float32.
    """
    need(device)
    flash = find_spec("flash_attn") is not None
    if device == "cuda" and not flash:
        raise Missing("flash_attention_2 needs flash-attn, which is not installed")
    made = prepare(folder, device)
    other, precision = ("flash_attention_2", "bf16") if device == "cuda" else ("eager", "fp32")
    losses = {
        f"{kind}_micro_{micro}": first_loss(
            made, f"{kind}-{micro}",
            Compute(device=device, threads=1, attention=kind, micro_batch=micro), precision,
        )
        for kind, micro in (("sdpa", 4), (other, 1), (other, 4))
    }  # fmt: skip
    spread = (max(losses.values()) - min(losses.values())) / min(losses.values())
    assert spread < CLOSE, f"losses differ by {spread:.1%}: {losses}; examples of a row may read each other"
    return {"precision": precision, **losses, "spread": spread}


def evaluation(device: str, folder: Path) -> Numbers:
    """One evaluation, of a bf16 model on a GPU, against lm_eval with its own batches; and whether rows are packed."""
    need(device)
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from eval.language_model import PackedLM

    made = prepare(folder, device)
    dtype = "bfloat16" if device == "cuda" else "float32"
    model: Any = AutoModelForCausalLM.from_pretrained(made.model, dtype=getattr(torch, dtype)).to(device).eval()
    words = AutoTokenizer.from_pretrained(made.model)
    asked = [
        SimpleNamespace(args=(item["prompt"], f" {choice}"), task_name="t")
        for item in made.items() for choice in item["choices"]
    ]  # fmt: skip
    lm = PackedLM(model, words, 8192, {})
    ours, wall = timed(lambda: lm.loglikelihood(asked), device)
    batch: Any = "auto" if device == "cuda" else 4
    stock = HFLM(pretrained=model, tokenizer=words, batch_size=batch)
    theirs, their_wall = timed(lambda: stock.loglikelihood(asked, disable_tqdm=True), device)
    nats = max(abs(mine[0] - their[0]) for mine, their in zip(ours, theirs, strict=True))
    assert nats < NATS[dtype], f"a log-likelihood differs by {nats:.3g} nats, expected less than {NATS[dtype]}"
    return {
        "dtype": dtype, "requests": len(asked), "packed": lm.packed, "largest_difference_nats": nats,
        "ours_seconds": wall, "lm_eval_seconds": their_wall,
    }  # fmt: skip


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """A result and its seconds, the device's queue waited for."""
    import torch

    started = time.monotonic()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, round(time.monotonic() - started, 3)


def memory(device: str, folder: Path) -> Numbers:
    """Peak memory of a training, a tuning of two merges and an evaluation, against what the plan states."""
    need_cuda(device, "torch.cuda.max_memory_allocated")
    import torch

    import merge
    from eval import harness, task_set
    from merge import Recipe
    from pipeline import config
    from pipeline.cost import memory as planned
    from pipeline.cost.shape import from_config_json
    from train import trainer

    made = prepare(folder, device)
    shape, settings = from_config_json(made.model / "config.json"), settings_of(made)
    planned_compute = config.Compute(device=device, micro_batch=4, precision="bf16")
    compute, settings = Compute.pick(planned_compute), settings.replace(precision="bf16")
    tasks = task_set.prepare(made.folder / "tasks")
    words = made.tokenizer()
    found: Numbers = {}

    def measured(name: str, plan: float, work: Callable[[], Any]) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        peak = torch.cuda.max_memory_allocated()
        found.update({f"{name}_bytes": peak, f"{name}_planned": round(plan), f"{name}_ratio": round(peak / plan, 3)})

    batch = 8192
    scoring = planned.scoring_memory(shape, batch, "bfloat16")
    training = planned.training_memory(shape, planned_compute, settings.batch_tokens, settings.block_size).total
    out = made.folder / "memory"
    measured("train", training, lambda: trainer.train(
        made.model, made.folder / "ct_blocks", settings, out / "out", work=out / "work", compute=compute
    ))  # fmt: skip
    how: Numbers = {"device": device, "dtype": "bfloat16", "batch_tokens": batch}
    measured("eval", scoring, lambda: harness.evaluate_folder(out / "out" / "model", tasks, **how))
    recipes = [Recipe.from_dict(made.ties(out / "out" / "model", density)) for density in (0.3, 0.7)]

    def tune() -> None:
        for _, model in merge.load_many(recipes, device):
            harness.evaluate(model, words, tasks, **how)

    measured("tune", scoring, tune)
    ratios = {name: found[f"{name}_ratio"] for name in ("train", "eval", "tune")}
    assert max(ratios.values()) <= PLANNED, f"more than the plan: {ratios}"
    return found


def resume(device: str, folder: Path) -> Numbers:
    """A training that is preempted after its first step and started again, against one that is not."""
    need(device)
    made = prepare(folder, device)
    compute = Compute(device=device, threads=1, micro_batch=1)
    whole = trained(made, "not-preempted", compute)
    again = trained(made, "preempted", compute, stop=True)
    difference = apart(whole, again)
    assert difference < CLOSE, f"weights differ by {difference:.1e}, expected less than {CLOSE}"
    return {"largest_difference": difference, "bit_identical": difference == 0}


def merging(device: str, folder: Path) -> Numbers:
    """TIES on the device, whose thresholds are found there, against the CPU's result and against the rate of a copy."""
    need(device)
    import torch

    import merge
    from merge import Recipe

    made = prepare(folder, device)
    other = made.moved()
    recipe = Recipe.from_dict(made.ties(other, 0.5))
    here, seconds = timed(lambda: merge.load(recipe, device).state_dict(), device)
    host = torch.empty(2 * sum(tensor.numel() for tensor in here.values()), dtype=torch.float32)
    _, copying = timed(lambda: host.to(device, copy=True), device)
    there = merge.load(recipe, "cpu").state_dict() if device != "cpu" else here
    difference = max(float((tensor.cpu() - there[name]).abs().max()) for name, tensor in here.items())
    assert difference < 1e-5, f"the merge differs from the CPU's by {difference:.1e}"
    size = host.numel() * 4
    return {
        "bytes_read": size, "merge_seconds": seconds, "merge_gb_per_second": round(size / max(seconds, 1e-3) / 1e9, 3),
        "copy_gb_per_second": round(size / max(copying, 1e-3) / 1e9, 3), "largest_difference": difference,
    }  # fmt: skip


STEPS: dict[str, Callable[[str, Path], Numbers]] = {
    "tests-one-device": lambda device, folder: pytest_gpu(device, folder, 1),
    "tests-all-devices": lambda device, folder: pytest_gpu(device, folder, None),
    "two-processes-ddp": lambda device, folder: two_processes(device, folder, "ddp"),
    "two-processes-fsdp": lambda device, folder: two_processes(device, folder, "fsdp"),
    "two-processes-zero2": lambda device, folder: two_processes(device, folder, "zero2"),
    "two-processes-zero3": lambda device, folder: two_processes(device, folder, "zero3"),
    "attention": attention,
    "evaluation": evaluation,
    "memory": memory,
    "resume": resume,
    "merge-throughput": merging,
}
QUICK = ["tests-one-device", "evaluation", "memory", "merge-throughput"]  # no process is started beside the step's


def main(name: str, device: str, folder: Path, out: Path) -> None:
    """Run a step and write its result."""
    found: Numbers
    try:
        found = {"status": "passed", **STEPS[name](device, folder)}
    except Missing as missing:
        found = {"status": "skipped", "reason": str(missing)}
    except Exception as error:  # whatever a GPU leads to is the step's result
        found = {"status": "failed", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    os._exit(0)  # threads of gloo may abort a process that ends in Python's own way
