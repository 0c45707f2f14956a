"""DELLA's time over TIES', and what votes in float32 cost under slack; prints one JSON line last.

    python benchmarks/bench_merge_methods.py [--size 270m] [--rounds 5] [--folder DIR]

Merges of three Llama-shaped bf16 checkpoints into folders, without audit and checksums, in turns in one process; ratios
of medians of wall and CPU seconds, by dtype of the arithmetic. DELLA and TIES are those of mergekit's configs (density
and weight 0.5, DELLA with its l1 rescaling). votes: TIES with slack as it is over the same with votes in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from bench_merge_models import SIZES, built

import merge


@contextmanager
def narrow_votes() -> Iterator[None]:
    """Votes are summed in the dtype that they have."""
    with mock.patch("merge.arithmetic.torch.promote_types", lambda dtype, _: dtype):
        yield


def timed(recipe: merge.Recipe, out: Path) -> tuple[float, float]:
    shutil.rmtree(out, ignore_errors=True)
    wall, cpu = time.perf_counter(), time.process_time()
    merge.write(recipe, out, audit=False, checksums=False)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="270m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-merge", help="where the models are kept"
    )
    options = parser.parse_args()
    base, *models = built(options.folder, options.size)

    def recipe(method: str, dtype: str, **settings: Any) -> merge.Recipe:
        own = {path.name: {"path": str(path), "weight": 0.5, "density": 0.5} for path in models}
        return merge.Recipe.from_dict(
            {"method": method, "base": str(base), "models": own, "tokenizer": "optional", "compute_dtype": dtype}
            | settings
        )

    slack = {"slack": 0.5, "protect": ["b"]}
    merges = {
        (name, dtype): recipe(method, dtype, **settings)
        for dtype in ("bfloat16", "float32")
        for name, method, settings in (
            ("ties", "ties", {}),
            ("della", "della", {"rescale": "l1"}),
            ("slack", "ties_sv", slack),
            ("slack_narrow", "ties_sv", slack),
        )
        if (name, dtype) != ("slack_narrow", "float32")
    }
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in merges}
    for _ in range(options.rounds):
        for key, stated in merges.items():
            if key[0] == "slack_narrow":
                with narrow_votes():
                    runs[key].append(timed(stated, options.folder / "out"))
            else:
                runs[key].append(timed(stated, options.folder / "out"))
    shutil.rmtree(options.folder / "out", ignore_errors=True)
    wall, cpu = ({key: median(run[i] for run in found) for key, found in runs.items()} for i in (0, 1))

    def ratios(above: tuple[str, str], below: tuple[str, str]) -> dict[str, float]:
        return {"wall": round(wall[above] / wall[below], 2), "cpu": round(cpu[above] / cpu[below], 2)}

    print(json.dumps({
        "size": options.size, "rounds": options.rounds, "threads": torch.get_num_threads(),
        **{f"della_over_ties_{dtype}": ratios(("della", dtype), ("ties", dtype)) for dtype in ("bfloat16", "float32")},
        "votes": ratios(("slack", "bfloat16"), ("slack_narrow", "bfloat16")),
        "ties_wall": round(wall["ties", "bfloat16"], 2), "ties_cpu": round(cpu["ties", "bfloat16"], 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
