"""Our merge and mergekit's of the same files, in turns, as whole processes; prints one JSON line last.

    python benchmarks/bench_merge.py [--size 270m|1b|7b] [--rounds 3] [--ours-only] [--cold] [--folder DIR]

TIES with density and weight 0.5 over a base and two models in bf16, from the same mergekit YAML. Ratios are medians,
mergekit's over ours (wall and CPU seconds, peak memory), and sd-mecha's (mecha_*: its TIES over the same files, with
its own defaults, in float32; no results are compared); io_floor_ratio is our wall time over reading the inputs and
writing as much as the output; audit_ratio is our wall time with the audit over that without. differing_share: elements
in which ours and mergekit's results differ; each is checked to lie at a trimming threshold, where several share a
magnitude and each side may keep which it likes. --ours-only leaves both others out. --cold takes the input files out of
the page cache before each run (sync and posix_fadvise, without root), so that they are read from the disk. 7b needs
54 GB of disk, and says so in the line where they are not there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from math import prod
from pathlib import Path
from statistics import median

from bench_merge_models import ROOT, SIZES, Measured, built, python, shapes_of, timed, weights

ORACLE = Path(os.environ.get("SLACKMERGE_ORACLE_PYTHON", ROOT / ".venv-oracle/bin/python"))
DENSITY = 0.5
FLOOR = """
import os, sys
count, *inputs, scratch = sys.argv[1:]
with open(scratch, "wb") as out:
    for number, path in enumerate(inputs):
        with open(path, "rb", buffering=0) as stream:
            while chunk := stream.read(1 << 24):
                if number < int(count):
                    out.write(chunk)
    out.flush()
    os.fsync(out.fileno())
"""
MECHA = """
import sys, sd_mecha, torch
from sd_mecha.extensions.builtin.merge_methods import linear, ties
*inputs, out = sys.argv[1:]
base, *models = (sd_mecha.model(path) for path in inputs)
merged = ties.ties_sum(*(linear.subtract(model, base) for model in models), k=0.5, vote_sgn=True)
sd_mecha.merge(linear.add_difference(base, merged, alpha=1.0), output=out + ".safetensors", output_dtype=torch.bfloat16)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="270m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-merge", help="where the models are kept"
    )
    parser.add_argument("--ours-only", action="store_true", help="neither mergekit nor sd-mecha")
    parser.add_argument("--cold", action="store_true", help="read the inputs from the disk, not from the page cache")
    options = parser.parse_args()
    if not options.ours_only and not ORACLE.is_file():
        parser.error(f"mergekit is not installed: no {ORACLE} (tests/merge/requirements-oracle.txt)")
    options.folder.mkdir(parents=True, exist_ok=True)
    if refusal := no_room(options.folder, options.size):
        print(json.dumps({"size": options.size, "skipped": refusal}))
        return
    base, *models = built(options.folder, options.size)
    runs = measured(options, base, models)
    mid = {name: Measured(*(median(column) for column in zip(*run, strict=True))) for name, run in runs.items()}
    ours = mid["ours"]
    found: dict[str, object] = {
        "size": options.size, "rounds": options.rounds, "cold": options.cold,
        "io_floor_ratio": round(ours.wall / mid["floor"].wall, 2),
        "audit_ratio": round(mid["audited"].wall / ours.wall, 2),
        "wall": round(ours.wall, 2), "cpu": round(ours.cpu, 2), "rss_mb": round(ours.rss / 1e6),
        "audited_rss_mb": round(mid["audited"].rss / 1e6), "floor_wall": round(mid["floor"].wall, 2),
        "floor_cpu": round(mid["floor"].cpu, 2), "audited_cpu": round(mid["audited"].cpu, 2),
    }  # fmt: skip
    for name, prefix in (("theirs", ""), ("mecha", "mecha_")):
        if name in mid:
            found |= {
                f"{prefix}wall_ratio": round(mid[name].wall / ours.wall, 2),
                f"{prefix}cpu_ratio": round(mid[name].cpu / ours.cpu, 2),
                f"{prefix}rss_ratio": round(mid[name].rss / ours.rss, 2),
            }
    if "theirs" in mid:
        differ, total = compare(options.folder / "ours", options.folder / "theirs", base, models)
        found |= {"parameters": total, "differing_share": differ / total}
    print(json.dumps(found))


def no_room(folder: Path, size: str) -> str | None:
    """Why the models and a result do not fit on the disk, where they do not."""
    numel = sum(prod(shape) for shape in shapes_of(*SIZES[size]).values())
    kept = sum(path.stat().st_size for path in (folder / size).glob("*/*.safetensors"))
    needed, free = 4 * 2 * numel - kept, shutil.disk_usage(folder).free
    return f"{needed / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} are free" if needed > free else None


def measured(options: argparse.Namespace, base: Path, models: list[Path]) -> dict[str, list[Measured]]:
    """The runs of each side, by turns; the last results of ours and mergekit's are kept for the comparison."""
    config = options.folder / "ties.yml"
    listed = [{"model": str(path), "parameters": {"weight": 0.5, "density": DENSITY}} for path in models]
    config.write_text(
        json.dumps({"merge_method": "ties", "base_model": str(base), "dtype": "bfloat16", "models": listed})
    )
    jobs = options.folder / "jobs.json"
    jobs.write_text(json.dumps([{"config": str(config), "out": str(options.folder / "theirs")}]))
    files = [str(path) for folder in (base, *models) for path in weights(folder)]
    ours = python("-m", "merge", str(config), "OUT", "--quiet", "--no-checksums")
    commands = {
        "floor": python("-c", FLOOR, str(len(weights(base))), *files, "OUT"),
        "audited": ours,
        "ours": [*ours, "--no-audit"],
    }
    if not options.ours_only:
        commands["mecha"] = [str(ORACLE), "-c", MECHA, *files, "OUT"]
        commands["theirs"] = [str(ORACLE), "tests/merge/oracle_run.py", str(jobs)]
    runs: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            out = options.folder / name
            remove(out)
            if options.cold:
                forget(files)
            runs[name].append(timed([str(out) if part == "OUT" else part for part in command]))
            print(f"{name}: {runs[name][-1]}", flush=True)
            if name not in ("ours", "theirs"):
                remove(out)
    return runs


def remove(out: Path) -> None:
    """A file or a folder, if it is there."""
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    out.with_suffix(".safetensors").unlink(missing_ok=True)


def forget(files: list[str]) -> None:
    """Take files out of the page cache."""
    os.sync()  # pages that are not written yet stay
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


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
