"""CPU time of merges on tensors and in compiled loops, in turns in one process; prints one JSON line last.

    python benchmarks/bench_merge_loops.py [--size 270m] [--rounds 3] [--cases ties:bfloat16 ...] [--folder DIR]

Nanoseconds of CPU per parameter (process CPU time, the least of the rounds) of survey and merge of a base and two
Llama-shaped bf16 checkpoints, by one thread, nothing written: [on tensors, in loops], by method and dtype of the
arithmetic; `audit:` before a method audits. load_seconds: CPU time of loading the loops once they are compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_merge_models import SIZES, built

from merge import Recipe
from merge.auditing import Audit
from merge.engine import fused
from merge.engine.outputs import Output
from merge.engine.passes import Workers, run, survey
from merge.engine.plan import make_plan
from merge.loops import machine_code
from merge.loops.tables import KINDS
from merge.methods import METHODS

CASES = [
    "ties:bfloat16", "audit:ties:bfloat16", "ties:float32", "audit:ties:float32", "ties_sv:bfloat16", "della:bfloat16",
    "task_arithmetic:bfloat16", "task_arithmetic:float32", "linear:bfloat16", "linear:float32",
]  # fmt: skip


class Nowhere:
    """A sink that forgets."""

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        pass


def recipe_of(method: str, dtype: str, base: Path, models: list[Path]) -> Recipe:
    """Weight and density 0.5; DELLA with mergekit's l1 rescaling; slack 0.5 for the first model."""
    row = METHODS[method]
    own = {"weight": 0.5} | ({"density": 0.5} if "density" in row.model_keys else {})
    data: dict[str, Any] = {
        "method": method, "tokenizer": "optional", "compute_dtype": dtype,
        "models": {path.name: {"path": str(path), **own} for path in models},
    }  # fmt: skip
    data |= {"base": str(base)} if row.base else {}
    data |= {"slack": 0.5, "protect": [models[0].name]} if method == "ties_sv" else {}
    return Recipe.from_dict(data | ({"rescale": "l1"} if method == "della" else {}))


def nanoseconds(recipe: Recipe, audited: bool) -> tuple[float, float]:
    """Of survey and merge, per parameter."""
    plan = make_plan([recipe])
    try:
        audits = [Audit(recipe) if audited else None]
        workers = Workers(threads=1)
        fused.loops_for(plan, "cpu", tell=True)
        started = time.process_time()
        surveyed = survey(plan, audits, workers)
        between = time.process_time()
        run(plan, [Nowhere()], audits, workers, surveyed)
        scale = 1e9 / sum(output.numel for output in plan.outputs)
        return (between - started) * scale, (time.process_time() - between) * scale
    finally:
        plan.close()


def load_seconds() -> float:
    """CPU time of loading the loops for bfloat16."""
    machine_code.compiled_loops([KINDS[torch.bfloat16]], tell=True)
    machine_code._ready.clear()
    machine_code._key.cache_clear()
    started = time.process_time()
    machine_code.compiled_loops([KINDS[torch.bfloat16]], tell=True)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="270m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="[audit:]METHOD:DTYPE")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-merge", help="where the models are kept"
    )
    options = parser.parse_args()
    base, *models = built(options.folder, options.size)
    torch.set_num_threads(1)
    fused.WORTH = fused.WORTH_COMPILING = 0
    fused.WHERE_FASTER = False
    found: dict[str, dict[str, list[float]]] = {}
    for case in options.cases:
        *audited, method, dtype = case.split(":")
        least = {name: [float("inf"), float("inf")] for name in ("survey", "merge")}
        for _ in range(options.rounds):
            for way, off in enumerate(("1", "")):
                os.environ[machine_code.OFF] = off
                times = nanoseconds(recipe_of(method, dtype, base, models), bool(audited))
                for name, value in zip(least, times, strict=True):
                    least[name][way] = round(min(least[name][way], value), 2)
        found[case] = least
        print(case, json.dumps(least), flush=True)
    os.environ[machine_code.OFF] = ""
    print(json.dumps({"size": options.size, "load_seconds": round(load_seconds(), 3), "ns": found}))


if __name__ == "__main__":
    main()
