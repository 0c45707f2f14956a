"""Our merge and mergekit's of the same files, in turns, as whole processes; prints one JSON line last.

    python benchmarks/bench_merge.py [--size 270m] [--rounds 3] [--folder DIR]

TIES with density and weight 0.5 over a base and two models in bf16, from the same mergekit YAML. Ratios are medians,
mergekit's over ours (wall and CPU seconds, peak memory); io_floor_ratio is our wall time over reading the inputs and
writing as much as the output; audit_ratio is our wall time with the audit over that without. differing_share: elements
in which the two results differ; each is checked to lie at a trimming threshold, where several share a magnitude and
each side may keep which it likes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median

from bench_merge_models import ROOT, SIZES, Measured, built, python, timed

ORACLE = Path(os.environ.get("SLACKMERGE_ORACLE_PYTHON", ROOT / ".venv-oracle/bin/python"))
DENSITY = 0.5
FLOOR = """
import os, sys
*inputs, scratch = sys.argv[1:]
for path in inputs:
    data = open(path, "rb").read()
with open(scratch, "wb") as stream:
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="270m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-merge", help="where the models are kept"
    )
    options = parser.parse_args()
    if not ORACLE.is_file():
        parser.error(f"mergekit is not installed: no {ORACLE} (tests/merge/requirements-oracle.txt)")
    base, *models = built(options.folder, options.size)
    config = options.folder / "ties.yml"
    listed = [{"model": str(path), "parameters": {"weight": 0.5, "density": DENSITY}} for path in models]
    config.write_text(
        json.dumps({"merge_method": "ties", "base_model": str(base), "dtype": "bfloat16", "models": listed})
    )
    jobs = options.folder / "jobs.json"
    jobs.write_text(json.dumps([{"config": str(config), "out": str(options.folder / "theirs")}]))
    ours = python("-m", "merge", str(config), "OUT", "--quiet", "--no-checksums")
    commands = {
        "floor": python("-c", FLOOR, *(str(path / "model.safetensors") for path in (base, *models)), "OUT"),
        "ours": [*ours, "--no-audit"],
        "audited": ours,
        "theirs": [str(ORACLE), "tests/merge/oracle_run.py", str(jobs)],
    }
    runs: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            out = options.folder / name
            shutil.rmtree(out, ignore_errors=True)
            out.unlink(missing_ok=True)
            runs[name].append(timed([str(out) if part == "OUT" else part for part in command]))
    differ, total = compare(options.folder / "ours", options.folder / "theirs", base, models)
    mid = {
        name: Measured(*(median(column) for column in zip(*measured, strict=True))) for name, measured in runs.items()
    }
    print(json.dumps({
        "size": options.size, "parameters": total, "rounds": options.rounds,
        "wall_ratio": round(mid["theirs"].wall / mid["ours"].wall, 2),
        "cpu_ratio": round(mid["theirs"].cpu / mid["ours"].cpu, 2),
        "rss_ratio": round(mid["theirs"].rss / mid["ours"].rss, 2),
        "io_floor_ratio": round(mid["ours"].wall / mid["floor"].wall, 2),
        "audit_ratio": round(mid["audited"].wall / mid["ours"].wall, 2),
        "wall": round(mid["ours"].wall, 2), "cpu": round(mid["ours"].cpu, 2), "rss_mb": round(mid["ours"].rss / 1e6),
        "mergekit_wall": round(mid["theirs"].wall, 2), "mergekit_rss_mb": round(mid["theirs"].rss / 1e6),
        "differing_share": differ / total,
    }))  # fmt: skip


def compare(ours: Path, theirs: Path, base: Path, models: list[Path]) -> tuple[int, int]:
    """Elements that differ, and all. Raises AssertionError for one that no tie at a trimming threshold explains."""
    import torch
    from safetensors.torch import load_file

    mine, origin, *parents = (load_file(folder / "model.safetensors") for folder in (ours, base, *models))
    other = {name: tensor for file in theirs.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert mine.keys() == other.keys()
    differ = 0
    for name, tensor in mine.items():
        apart = tensor != other[name]
        differ += int(apart.sum())
        for parent in parents:
            size = (parent[name] - origin[name]).abs()
            kept = max(1, int(DENSITY * size.numel()))
            edge = size.flatten().float().kthvalue(size.numel() - kept + 1).values
            apart &= size != edge
        assert not apart.any(), (
            f"{int(apart.sum())} elements of {name} differ from mergekit's without being at a threshold: "
            f"{torch.nonzero(apart)[:3]}"
        )
    return differ, sum(tensor.numel() for tensor in mine.values())


if __name__ == "__main__":
    main()
