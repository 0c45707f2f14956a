"""Peak memory of real trainings on this CPU against what pipeline/cost/memory.py says, calibrated on the first.

The last line is JSON.

Each training is a process of its own, `python -m train`; its peak is what the kernel says (ru_maxrss). What a process
holds before it trains (Python, torch, transformers) is taken from the first case and added to every prediction. Times
are not judged here: the machine may be busy.

python benchmarks/bench_cost.py [FOLDER_OF_SMOLLM2]      # `make smollm2-model` writes it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Compute
from pipeline.cost import memory
from pipeline.cost.shape import from_config_json

ROOT = Path(__file__).parents[1]
TINY = ROOT / "models" / "tiny-base"
# name, model, blocks a batch, tokens a block, options
CASES: list[tuple[str, str, int, int, dict[str, Any]]] = [
    ("tiny, as CT trains it", "tiny", 8, 250, {}),
    ("tiny, as SFT trains it", "tiny", 4, 250, {}),
    ("tiny, 64 blocks a pass", "tiny", 64, 250, {}),
    ("tiny, 64 blocks, recomputed", "tiny", 64, 250, {"gradient_checkpointing": True}),
    ("tiny, 64 blocks in passes of 16", "tiny", 64, 250, {"micro_batch": 16}),
    ("SmolLM2, 1 block", "smollm2", 1, 256, {}),
    ("SmolLM2, 4 blocks", "smollm2", 4, 256, {}),
    ("SmolLM2, 4 blocks, recomputed", "smollm2", 4, 256, {"gradient_checkpointing": True}),
]


def measure(model: Path, blocks: int, block_size: int, options: dict[str, Any]) -> tuple[int, float]:
    """(peak bytes, CPU seconds) of a process that trains three steps."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "blocks").mkdir()
        np.save(
            folder / "blocks" / "blocks.npy",
            np.random.default_rng(0).integers(0, 2000, (3 * blocks, block_size)).astype(np.uint16),
        )
        (folder / "blocks" / "counts.json").write_text(
            json.dumps({"blocks": 3 * blocks, "tokens": 3 * blocks * block_size})
        )
        batch = blocks * block_size
        settings = {
            "tokens": 3 * batch,
            "schedule_tokens": 30 * batch,
            "batch_tokens": batch,
            "block_size": block_size,
            "learning_rate": 1e-5,
        }
        settings |= {
            "min_lr_ratio": 0.1,
            "warmup_ratio": 0.1,
            "weight_decay": 0.0,
            "seed": 0,
        }
        job = {
            "model": str(model),
            "blocks": str(folder / "blocks"),
            "settings": settings,
            "out": str(folder / "out"),
            "work": str(folder / "work"),
        }
        job["compute"] = {"threads": 1, **options}
        (folder / "job.json").write_text(json.dumps(job))
        quiet = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TRANSFORMERS_VERBOSITY": "error"}
        process = subprocess.Popen(
            [sys.executable, "-m", "train", str(folder / "job.json")],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env=os.environ | quiet,
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the training of {model} ended with {os.waitstatus_to_exitcode(status)}")
        return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


def main() -> None:
    models = {
        "tiny": TINY,
        "smollm2": Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "models" / "smollm2-135m-instruct"),
    }
    rows: list[dict[str, Any]] = []
    overhead = None
    for name, which, blocks, block_size, options in CASES:
        if not models[which].is_dir():
            print(f"{name}: left out, {models[which]} is not there (make smollm2-model)")
            continue
        shape = from_config_json(models[which] / "config.json")
        says = memory.training_memory(shape, Compute(**options), blocks * block_size, block_size).total
        peak, seconds = measure(models[which], blocks, block_size, options)
        overhead = peak - says if overhead is None else overhead
        rows.append(
            {
                "case": name,
                "model": which,
                "blocks": blocks,
                "block_size": block_size,
                "options": options,
                "peak": peak,
                "cpu_seconds": round(seconds, 1),
            }
        )
        print(
            f"{name:34} measured {peak / 1e6:8,.0f} MB, "
            f"predicted {(overhead + says) / 1e6:8,.0f} MB, ratio {(overhead + says) / peak:.2f}",
            flush=True,
        )
    print(json.dumps({"cases": rows}))


if __name__ == "__main__":
    main()
