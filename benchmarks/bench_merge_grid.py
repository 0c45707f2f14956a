"""Twelve settings in one pass over one setting alone, nothing written; prints one JSON line last.

python benchmarks/bench_merge_grid.py [--size 270m] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from statistics import median

from bench_merge_models import SIZES, built, python, timed

ONE = """
import json, sys
from merge.engine.passes import run
from merge.engine.plan import make_plan
from merge.recipe import Recipe
plan = make_plan([Recipe.from_dict(data) for data in json.load(open(sys.argv[1]))])
run(plan, [None] * len(plan.recipes))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="270m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-merge", help="where the models are kept"
    )
    options = parser.parse_args()
    base, *models = built(options.folder, options.size)
    recipes = [
        {
            "method": "ties_sv", "base": str(base), "slack": slack, "protect": ["b"], "lambda": scale,
            "tokenizer": "optional",
            "models": {path.name: {"path": str(path), "density": density} for path in models},
        }
        for slack, density, scale in itertools.product((0.5, 0, 1), (0.5, 0.2), (1.0, 2.0))
    ]  # fmt: skip
    files = {count: options.folder / f"grid-{count}.json" for count in (1, len(recipes))}
    runs: dict[int, list[tuple[float, float]]] = {count: [] for count in files}
    for count, file in files.items():
        file.write_text(json.dumps(recipes[:count]))
    for _ in range(options.rounds):
        for count, file in files.items():
            measured = timed(python("-c", ONE, str(file)))
            runs[count].append((measured.wall, measured.cpu))
    (one_wall, one_cpu), (all_wall, all_cpu) = (
        [median(column) for column in zip(*found, strict=True)] for found in runs.values()
    )
    print(json.dumps({
        "size": options.size, "settings": len(recipes), "rounds": options.rounds,
        "wall_ratio": round(all_wall / one_wall, 2),
        "cpu_ratio": round(all_cpu / one_cpu, 2), "one_wall": round(one_wall, 2), "all_wall": round(all_wall, 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
