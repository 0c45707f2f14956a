"""Real mergekit and ours on the same config and files, in turns; prints one JSON line last.

    python benchmarks/bench_merge.py [--size 270m] [--rounds 3] [--folder DIR]

wall_ratio, cpu_ratio, rss_ratio: mergekit over ours, whole processes with imports, medians; ours without audit and checksums, which
mergekit does not make either. io_floor_ratio: ours over reading the inputs and writing the output. audit_ratio: CPU time with the
audit over CPU time without. mergekit is looked for as tests/merge/test_oracle.py does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from bench_merge_models import ROOT, SIZES, Measured, build, python, timed

ORACLE = Path(os.environ.get("SLACKMERGE_ORACLE_PYTHON", ROOT / ".venv-oracle/bin/python"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="270m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-merge", help="where the models are kept")
    options = parser.parse_args()
    if not ORACLE.is_file():
        parser.error(f"mergekit is not installed: no {ORACLE} (tests/merge/requirements-oracle.txt)")
    base, *models = build(options.folder, options.size)
    config = options.folder / "ties.yml"
    listed = [{"model": str(path), "parameters": {"weight": 0.5, "density": 0.5}} for path in models]
    config.write_text(json.dumps({"merge_method": "ties", "base_model": str(base), "dtype": "bfloat16", "models": listed}))
    ours, theirs, audited, floors = [], [], [], []
    for _ in range(options.rounds):
        floors.append(io_floor([base, *models], options.folder / "floor"))
        ours.append(_merge(python("-m", "merge", str(config), "OUT", "--quiet", "--no-audit", "--no-checksums"), options.folder / "ours"))
        audited.append(_merge(python("-m", "merge", str(config), "OUT", "--quiet", "--no-checksums"), options.folder / "audited"))
        jobs = options.folder / "jobs.json"
        jobs.write_text(json.dumps([{"config": str(config), "out": str(options.folder / "theirs")}]))
        theirs.append(_merge([str(ORACLE), "tests/merge/oracle_run.py", str(jobs)], options.folder / "theirs"))
    differ, total = compare(options.folder / "ours", options.folder / "theirs")
    best = {name: Measured(*(median(getattr(run, key) for run in runs) for key in ("wall", "cpu", "rss")))
            for name, runs in (("ours", ours), ("theirs", theirs), ("audited", audited))}  # fmt: skip
    print(json.dumps({
        "size": options.size, "parameters": total, "rounds": options.rounds,
        "wall_ratio": round(best["theirs"].wall / best["ours"].wall, 2),
        "cpu_ratio": round(best["theirs"].cpu / best["ours"].cpu, 2),
        "rss_ratio": round(best["theirs"].rss / best["ours"].rss, 2),
        "io_floor_ratio": round(best["ours"].wall / median(floors), 2),
        "audit_ratio": round(best["audited"].cpu / best["ours"].cpu, 2),
        "wall": round(best["ours"].wall, 2), "cpu": round(best["ours"].cpu, 2), "rss_mb": best["ours"].rss // 10**6,
        "mergekit_wall": round(best["theirs"].wall, 2), "mergekit_rss_mb": best["theirs"].rss // 10**6,
        "differing_share": differ / total,
    }))  # fmt: skip


def _merge(command: list[str], out: Path) -> Measured:
    shutil.rmtree(out, ignore_errors=True)
    return timed([str(out) if part == "OUT" else part for part in command])


def io_floor(inputs: list[Path], scratch: Path) -> float:
    """Seconds to read the inputs and write as much as one of them, fsynced."""
    started = time.perf_counter()
    for folder in inputs:
        data = (folder / "model.safetensors").read_bytes()
    with scratch.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - started
    scratch.unlink()
    return seconds


def compare(ours: Path, theirs: Path) -> tuple[int, int]:
    """Elements that differ, and all. Raises AssertionError when they are more than threshold ties can explain (5 %)."""
    from safetensors.torch import load_file

    mine = load_file(ours / "model.safetensors")
    other = {name: tensor for file in theirs.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert mine.keys() == other.keys()
    total = sum(tensor.numel() for tensor in mine.values())
    differ = sum(int((tensor != other[name]).sum()) for name, tensor in mine.items())
    assert differ <= 0.05 * total, f"{differ} of {total} elements differ from mergekit's"
    return differ, total


if __name__ == "__main__":
    main()
