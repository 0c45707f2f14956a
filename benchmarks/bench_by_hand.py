"""The default experiment, reduced, by hand (by_hand/run.sh) and by us, as whole processes; prints one JSON line last.

    python benchmarks/bench_by_hand.py [--budgets 40000,200000] [--sft-tokens 400000] [--limit 300] [--one-core]

Both sides: the shipped base, CT at two budgets, English SFT, CT-then-SFT, three merges with stated settings, all scored
on the same items and documents, one seed, nothing tuned. Each side has all cores, as its users run it: ours with the
cells at a time that experiment=cosine has, the script one thing after another with torch's own threads; or both one
thread and one thing at a time (--one-core). By hand gets its text, instructions and tasks ready made; ours makes them,
and keeps records, resumes and reports. ratio: seconds by hand over ours; cpu_ratio: the same in CPU seconds of the
whole process tree. The trainings draw their data in other orders, so scores agree within noise: scores_agree is whether
every accuracy is within four standard errors of the difference.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
from math import sqrt
from pathlib import Path

from bench_merge_models import ROOT, python, timed

BY_HAND = Path(__file__).parent / "by_hand"
STAGE = Path(__file__).with_name("bench_eval_stage.py")
ORACLE = Path(os.environ.get("SLACKMERGE_ORACLE", ROOT / ".venv-oracle/bin"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", default="40000,200000", help="tokens of CT")
    parser.add_argument("--sft-tokens", type=int, default=400_000)
    parser.add_argument("--limit", type=int, default=300, help="items of a task")
    parser.add_argument("--one-core", action="store_true", help="one thread, one thing at a time, on both sides")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-by-hand")
    options = parser.parse_args()
    if not (ORACLE / "mergekit-yaml").is_file():
        parser.error(f"mergekit is not installed: no {ORACLE}/mergekit-yaml (make oracle)")
    folder: Path = options.folder.absolute()
    os.environ |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub")}
    os.environ |= {"PYTHON": sys.executable, "MERGEKIT": str(ORACLE / "mergekit-yaml")}
    os.environ["LM_EVAL"] = str(Path(sys.executable).with_name("lm_eval"))
    data, one_core = prepared(folder, options.limit), []
    if options.one_core:
        os.environ["OMP_NUM_THREADS"], one_core = "1", ["hydra.launcher.n_jobs=1"]
    for side in ("by-hand", "ours"):
        shutil.rmtree(folder / side, ignore_errors=True)
    ours = python(
        "-m", "pipeline", "run", "-m", "experiment=cosine", *one_core, "seed=0",
        "merge=fixed", "~merge.methods.ties_sv_1", "sft.grid={learning_rate: [5e-4]}",  # nothing is tuned
        *(f"+merge.methods.{name}.control=true" for name in ("linear", "task_arithmetic", "ties")),
        f"ct.tokens={options.budgets}", f"sft.tokens={options.sft_tokens}",
        f"eval.limit={options.limit}", "tracking=none", f"store={folder / 'ours' / 'store'}",
        f"outputs={folder / 'ours'}",
    )  # fmt: skip
    run = str(BY_HAND / "run.sh")
    budgets = options.budgets.replace(",", " ")
    mine = timed(ours)
    print(f"ours: {mine.wall:.0f} s, {mine.cpu:.0f} CPU s", flush=True)
    theirs = timed(["bash", run, str(data), str(folder / "by-hand"), budgets, str(options.sft_tokens)])
    print(f"by hand: {theirs.wall:.0f} s, {theirs.cpu:.0f} CPU s", flush=True)
    apart = differences(folder)
    print(json.dumps({
        "ratio": round(theirs.wall / mine.wall, 2), "cpu_ratio": round(theirs.cpu / mine.cpu, 2),
        "ours": round(mine.wall), "by_hand": round(theirs.wall),
        "ours_cpu": round(mine.cpu), "by_hand_cpu": round(theirs.cpu), "lines_ours": 1,
        "lines_by_hand": sum(lines(path) for path in BY_HAND.iterdir() if path.is_file()),
        "scores_agree": bool(apart) and max(apart) <= 4, "scores": len(apart),
        "standard_errors_apart": max(apart, default=None),
        "budgets": options.budgets, "sft_tokens": options.sft_tokens, "limit": options.limit,
        "cores": 1 if options.one_core else os.cpu_count(),
    }))  # fmt: skip


def prepared(folder: Path, limit: int) -> Path:
    """What by hand gets ready made: the base, text, instructions, and tasks of lm_eval."""
    data = folder / "data"
    if not (data / "whole").is_file():
        timed(python(str(STAGE), "prepare", str(data), "0"))
        (corpus,) = (data / "store" / "corpus").iterdir()
        (items,) = (data / "store" / "items").iterdir()
        for language in ("nya", "en"):
            shutil.copy(corpus / "text" / f"{language}.train.jsonl", data / f"{language}.jsonl")
        shutil.copy(items / "sft.jsonl", data / "sft.jsonl")
        shutil.copytree(ROOT / "models" / "tiny-base", data / "base")
        (data / "whole").touch()
    for path in (data / "tasks").glob("*.jsonl"):
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:limit]), encoding="utf-8")
    return data


def lines(path: Path) -> int:
    """Lines of code: neither blank nor comments."""
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in path.read_text().splitlines())


def differences(folder: Path) -> list[float]:
    """Of every accuracy that both sides have: how many standard errors they are apart."""
    theirs: dict[tuple[str, str], float] = {}
    for path in (folder / "by-hand" / "scores").rglob("results_*.json"):
        name = path.relative_to(folder / "by-hand" / "scores").parts[0]
        for task, measured in json.loads(path.read_text(encoding="utf-8"))["results"].items():
            if "acc,none" in measured:
                theirs[name, task] = measured["acc,none"]
    apart = []
    with (folder / "ours" / "cosine" / "results.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            method = row["method"] if row["method"] in ("base", "sft") else f"{row['method']}-{row['ct_tokens']}"
            other = theirs.get((method, row["task"]))
            if row["metric"] != "acc" or other is None:
                continue
            mean, n = (float(row["value"]) + other) / 2, int(row["n"])
            apart.append(abs(float(row["value"]) - other) / max(sqrt(2 * mean * (1 - mean) / n), 1e-9))
    return apart


if __name__ == "__main__":
    main()
