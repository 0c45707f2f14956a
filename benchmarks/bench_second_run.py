"""A part of `make bench-sweep`: a sweep that is done, run again; and CT at B budgets against the largest alone.

    python benchmarks/bench_second_run.py [--experiment test] [--store FOLDER] [--rounds 3] [--records]

The experiment is run once, into a temporary folder, unless `--store` names one that has been used: then the second runs
write their report to a temporary folder, and CT is counted over all that the store has; with `--records` nothing else
is done. Seconds are of the clock, and of the CPU in the whole process tree, medians over rounds. ct_tokens_ratio:
tokens that the budgets of a trajectory trained on, by the records of their entries, over the largest budget; the
largest such ratio. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "lm_eval")


def command(experiment: str, store: Path, outputs: Path, *python: str) -> list[str]:
    given = ("-m", f"experiment={experiment}", f"store={store}", f"outputs={outputs}", "tracking=none")
    return [sys.executable, *python, "-m", "pipeline", "run", *given]


def run(words: list[str]) -> tuple[float, float, subprocess.CompletedProcess[str]]:
    """Seconds of the clock, CPU seconds, and what was said."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def second(experiment: str, store: Path, outputs: Path, rounds: int) -> dict[str, Any]:
    """A sweep that is done, again: its times, and which large packages it imported."""
    timed = [run(command(experiment, store, outputs)) for _ in range(rounds)]
    summaries = [json.loads(done.stdout.splitlines()[-1]) for _, _, done in timed]
    if any(summary["stages_run"] for summary in summaries):
        raise SystemExit(f"store={store}: experiment={experiment} was not done there, so these were no second runs")
    _, _, traced = run(command(experiment, store, outputs, "-X", "importtime"))
    imported = [name for name in HEAVY if re.search(rf"\\| +{name}$", traced.stderr, re.MULTILINE)]
    return {
        "stages": summaries[0]["stages_reused"],
        "second_run_s": round(statistics.median(seconds for seconds, _, _ in timed), 2),
        "second_run_cpu_s": round(statistics.median(cpu for _, cpu, _ in timed), 2),
        "imported": imported,
    }


def ct_cost(store: Path) -> dict[str, Any]:
    """Of every trajectory of several budgets, what CT cost against its largest budget alone."""
    by_trajectory: dict[str, list[dict[str, Any]]] = {}
    for path in store.glob("ct/*/stage.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        by_trajectory.setdefault(record["trajectory"], []).append(record)
    several = [records for records in by_trajectory.values() if len(records) > 1]
    tokens, seconds = [], []
    for records in several:
        last = max(records, key=lambda record: record["settings"]["tokens"])
        largest, added = last["settings"]["tokens"], last["settings"]["tokens"] - last["resumed_tokens"]
        tokens.append(sum(record["settings"]["tokens"] - record["resumed_tokens"] for record in records) / largest)
        seconds.append(sum(record["seconds"] for record in records) / (last["seconds"] * largest / added))
    if not several:
        return {"trajectories": 0}
    return {
        "trajectories": len(several),
        "budgets": sum(map(len, several)),
        "ct_tokens_ratio": round(max(tokens), 4),
        "ct_seconds_ratio": round(statistics.median(seconds), 3),  # by the rate of the largest budget's own part
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="test")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", action="store_true")
    options = parser.parse_args()
    if options.records:
        if options.store is None:
            parser.error("--records counts what a store has: name it with --store")
        print(json.dumps(ct_cost(options.store)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        outputs, store = Path(temporary) / "outputs", options.store or Path(temporary) / "store"
        if options.store is None:
            run(command(options.experiment, store, outputs))
        result = second(options.experiment, store, outputs, options.rounds)
        print(json.dumps({"experiment": options.experiment, **result, **ct_cost(store)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
