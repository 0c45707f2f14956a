"""`make bench-slurm`: a sweep of two thousand jobs through a real Slurm on this host; the last line is one JSON object.

    python benchmarks/bench_slurm.py [--languages 5] [--sleep 1]

The plan is that of bench_sweep.py, and everything between it and Slurm is real: how it is cut into jobs, submitted in
arrays that wait for one another, and watched to its end. The jobs sleep: in place of the worker each runs a script that
publishes an entry, made beforehand, for every stage that is its own. Two nodes on this host, root and Debian's packages
(tests/slurm/cluster.py); where Slurm cannot be had, the line says why.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from bench_sweep import overrides, write_entry

from pipeline import run_plan, sweep
from pipeline.journal import FILE, Journal
from pipeline.run import cluster
from pipeline.run.cells import run_executor
from pipeline.run.cluster import schedule, slurm
from pipeline.run.cluster import site as sites
from pipeline.run_plan import RunPlan
from tests.slurm.cluster import Slurm, install, unavailable

ROOT = Path(__file__).parents[1]
CPUS = 256  # that each of the two nodes says it has: a job that sleeps needs none
SLEEPER = """
import json, os, sys, time
store, staged = {store!r}, {staged!r}
with open(store + "/.jobs/" + os.environ["SLURM_JOB_NAME"] + ".json") as file:
    job = json.load(file)[int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))]
time.sleep({sleep})
with open(job["folder"] + "/" + job["name"] + ".jsonl", "a") as journal:
    for key in job["keys"]:
        (name,) = os.listdir(staged + "/" + key)
        kind, _, entry = name.partition("@")
        os.makedirs(store + "/" + kind, exist_ok=True)
        os.rename(staged + "/" + key + "/" + name, store + "/" + kind + "/" + entry)
        event = {{"event": "published", "kind": kind, "slug": entry.rpartition("-")[0], "key": key, "seconds": {sleep}}}
        journal.write(json.dumps(event) + "\\n")
"""


def stage_entries(plan: RunPlan, staged: Path) -> None:
    """An entry that holds nothing for every stage, each where one rename publishes it."""
    for stage in plan.stages:
        write_entry(staged / stage.key / f"{stage.kind}@{stage.slug}-{stage.key}", stage)


def sleeping(folder: Path, store: Path, staged: Path, sleep: float) -> sites.Site:
    """The site of tests/slurm, whose jobs run the sleeper."""
    script = folder / "sleeper.py"
    script.write_text(SLEEPER.format(store=str(store), staged=str(staged), sleep=sleep))
    site = sites.read(str(ROOT / "tests" / "slurm" / "site.yaml"))
    python = f"{sys.executable} -S -E {script}"
    return site.model_copy(
        update={"python": python, "setup": None, "max_parallel": 1000, "evals_per_job": 1, "poll_seconds": 5.0}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", type=int, default=5)
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds of a job")
    options = parser.parse_args()
    install()
    if reason := unavailable():
        print(json.dumps({"skipped": reason}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # munged wants everybody to reach its socket
        store, staged = folder / "store", folder / "staged"
        words = [*overrides(options.languages, store), f"outputs={folder / 'outputs'}"]
        plan = run_plan.plan(sweep.expand(words, multirun=True), network=False)
        stage_entries(plan, staged)
        with Slurm(folder / "cluster", cpus=CPUS):
            print(json.dumps(swept(plan, sleeping(folder, store, staged, options.sleep))))


def swept(plan: RunPlan, site: sites.Site) -> dict[str, Any]:
    """The sweep through Slurm, and what it took."""
    pieces = schedule.group_into_pieces(plan.stages)
    run = plan.new_folder()
    plan.save(run)
    journal = Journal(run / FILE)
    submitted: list[float] = []

    def timed(*given: Any) -> Any:
        begun = time.monotonic()
        jobs = real(*given)
        submitted.append(time.monotonic() - begun)
        return jobs

    real = slurm.submit
    begun, cpu = time.monotonic(), time.process_time()
    with mock.patch.object(slurm, "submit", timed):
        cluster.compute(site, plan, plan.missing(), run_executor(plan, journal))
    events = Counter(event["event"] for event in journal.events("published", "failed", "not_run"))
    return {
        "stages": len(plan.stages), "jobs": len(pieces), "arrays": len(schedule.arrays(pieces)),
        "submission_s": round(submitted[0], 1), "total_s": round(time.monotonic() - begun, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "published": events["published"], "lost": events["failed"] + events["not_run"], "missing": len(plan.missing()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
