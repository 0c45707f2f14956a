"""Scoring many checkpoints: the lm_eval command line, once each, against our eval stage; prints one JSON line last.

    python benchmarks/bench_eval.py [--checkpoints 10] [--batch-size 16] [--rounds 2] [--folder DIR]

The tasks are those of experiment=tiny; the checkpoints are its base and copies of it with a little noise. Both sides
run as whole processes with one thread, by turns: ours scores all checkpoints in one process (a round), theirs one a
process, each checkpoint once, spread over the rounds. ratio: their median seconds a checkpoint over our mean, by the
clock; cpu_ratio: the same in CPU seconds of the whole process tree, which other programs on the machine hardly move.
Every log-likelihood, and with it every prediction, of both sides is compared: agree. tokens_ratio: tokens that would go
through the model had each request gone by itself (lm_eval groups only choices of one token), over those in our packed
rows: what the ratio can come to where arithmetic is all that takes time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

from bench_merge_models import ROOT, Measured, python, timed

from common.files import read_jsonl

CLOSE, CLOSE_SHARE = 1e-4, 1e-6  # nats of a choice; share of a document's nats, which add up hundreds of tokens
STAGE = Path(__file__).with_name("bench_eval_stage.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--batch-size", default="16", help="of the lm_eval command line: a number or auto")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--theirs", type=int, help="score only so many of them by lm_eval (default: all)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-eval", help="where the tasks are kept"
    )
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub")}
    timed(python(str(STAGE), "prepare", str(folder), str(options.checkpoints)))
    checkpoints = sorted((folder / "checkpoints").iterdir())[: options.checkpoints]
    by_both = checkpoints[: options.theirs]
    shutil.rmtree(folder / "theirs", ignore_errors=True)
    ours: list[Measured] = []
    theirs: list[Measured] = []
    for number in range(options.rounds):
        shutil.rmtree(folder / "ours", ignore_errors=True)
        ours.append(timed(python(str(STAGE), "score", str(folder), str(options.checkpoints))))
        print(f"ours: {len(checkpoints)} checkpoints in {ours[-1].wall:.1f} s, {ours[-1].cpu:.1f} CPU s", flush=True)
        for checkpoint in by_both[number :: options.rounds]:
            theirs.append(timed(command(checkpoint, folder, options.batch_size)))
            print(f"lm_eval: {checkpoint.name} in {theirs[-1].wall:.1f} s, {theirs[-1].cpu:.1f} CPU s", flush=True)
    items, predictions, nats, share = compared(folder, [checkpoint.name for checkpoint in by_both])
    seconds = mean(run.wall for run in ours) / len(checkpoints), median(run.wall for run in theirs)
    cpu = mean(run.cpu for run in ours) / len(checkpoints), median(run.cpu for run in theirs)
    tokens = json.loads((folder / "ours" / "tokens").read_text())
    print(json.dumps({
        "ratio": round(seconds[1] / seconds[0], 2), "cpu_ratio": round(cpu[1] / cpu[0], 2),
        "our_seconds_a_checkpoint": round(seconds[0], 2), "their_seconds_a_checkpoint": round(seconds[1], 2),
        "our_cpu_seconds_a_checkpoint": round(cpu[0], 2), "their_cpu_seconds_a_checkpoint": round(cpu[1], 2),
        "agree": predictions == 0 and nats <= CLOSE and share <= CLOSE_SHARE, "predictions_apart": predictions,
        "choices_nats_apart": nats, "documents_share_apart": share,
        "tokens_ratio": round(tokens["alone"] / tokens["packed"], 2),
        "items": items, "checkpoints": len(checkpoints), "by_lm_eval": len(by_both),
        "batch_size": options.batch_size, "rounds": options.rounds,
    }))  # fmt: skip


def command(checkpoint: Path, folder: Path, batch_size: str) -> list[str]:
    """The command line of lm_eval for one checkpoint."""
    tasks = ",".join(path.stem for path in sorted((folder / "tasks").glob("*.yaml")))
    return [
        str(Path(sys.executable).with_name("lm_eval")), "run", "--model", "hf",
        "--model_args", f"pretrained={checkpoint},dtype=float32", "--include_path", str(folder / "tasks"),
        "--tasks", tasks, "--device", "cpu", "--batch_size", batch_size,
        "--output_path", str(folder / "theirs" / checkpoint.name), "--log_samples",
    ]  # fmt: skip


def compared(folder: Path, checkpoints: list[str]) -> tuple[int, int, float, float]:
    """Items and documents compared; predictions that differ; how far choices (nats) and texts (share) are."""
    items = wrong = 0
    nats = share = 0.0
    for checkpoint in checkpoints:
        for task, mine in json.loads((folder / "ours" / f"{checkpoint}.json").read_text(encoding="utf-8")).items():
            other = list(answers(folder / "theirs" / checkpoint, task))
            assert len(mine) == len(other), f"{task}: {len(mine)} documents and {len(other)}"
            for ours, theirs in zip(mine, other, strict=True):
                items += 1
                wrong += ours.index(max(ours)) != theirs.index(max(theirs))
                apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
                if len(ours) == 1:
                    share = max(share, apart / abs(theirs[0]))
                else:
                    nats = max(nats, apart)
    return items, wrong, nats, share


def answers(folder: Path, task: str) -> Iterator[list[float]]:
    """The log-likelihoods that lm_eval logged, document by document."""
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    for row in sorted(read_jsonl(path), key=lambda row: row["doc_id"]):
        answer = row["filtered_resps"]
        yield [float(pair[0]) for pair in answer] if isinstance(answer[0], list) else [float(answer[0])]


if __name__ == "__main__":
    main()
