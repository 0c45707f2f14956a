"""Text to blocks: ours against `datasets.map` with group_texts, on the same text with as many processes.

Prints one JSON line last.

    python benchmarks/bench_data.py [--megabytes 48] [--workers 2] [--rounds 3] [--folder DIR]

The text is that of the two Bible packages, in Parquet files of 4 MB: in each repetition its verses are in a new order,
and one word in NEW is replaced by one that occurs nowhere else, as there always are in natural text, so that repetition
does not flatter who remembers words. Theirs tokenises and then groups as transformers' run_clm example does; ours is
`train.data.packing.ct_blocks`. Both start from the files and a loaded tokenizer and end with blocks of 2,048 tokens on
disk; imports are not counted, starting processes is. In turns; tokens_ratio is ours over theirs, each by its median
tokens/s. memory_ratio: our peak memory (resident, all processes) on four times the text over that on the text;
corpus_ratio says how much more text that was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from string import ascii_lowercase
from typing import Any

import psutil

from train.data.corpus import sources

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "tiny-base"
PART = 4 * 10**6  # bytes of text in a file
BLOCK = 2048
NEW = 50

OURS = """
import json, sys, time
from pathlib import Path
from train.data import packing
from train.settings import CtBlocksSettings
if __name__ == "__main__":
    corpus, model, out = map(Path, sys.argv[1:4])
    workers, size = map(int, sys.argv[4:6])
    packing.load_tokenizer(model)
    started = time.monotonic()
    settings = CtBlocksSettings("xx", schedule_tokens=10**12, block_size=size, english_fraction=0.0, seed=0)
    packing.ct_blocks(corpus, model, settings, out / "blocks", out / "work", workers)
    seconds = time.monotonic() - started
    tokens = json.loads((out / "blocks" / "counts.json").read_text())["tokens"]
    print(json.dumps({"tokens": tokens, "seconds": seconds}))
"""

THEIRS = """
import json, sys, time
from itertools import chain
import datasets
from transformers import AutoTokenizer
if __name__ == "__main__":
    corpus, model, out = sys.argv[1:4]
    workers, size = map(int, sys.argv[4:6])
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)
    files = corpus + "/text/xx.train/*.parquet"
    text = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=out)

    def tokenize(rows):
        return tokenizer([row + tokenizer.eos_token for row in rows["text"]], add_special_tokens=False)

    def group_texts(rows):
        joined = {name: list(chain(*column)) for name, column in rows.items()}
        whole = len(joined["input_ids"]) // size * size
        blocks = {name: [column[i : i + size] for i in range(0, whole, size)] for name, column in joined.items()}
        blocks["labels"] = blocks["input_ids"].copy()
        return blocks

    started = time.monotonic()
    tokens = text.map(tokenize, batched=True, num_proc=workers, remove_columns=text.column_names)
    blocks = tokens.map(group_texts, batched=True, num_proc=workers)
    seconds = time.monotonic() - started
    print(json.dumps({"tokens": len(blocks) * size, "seconds": seconds}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=48, help="of text; a quarter of it is the smaller corpus")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "bench-data",
        help="where the text and the blocks are kept",
    )
    options = parser.parse_args()
    large = written(options.folder / "large", options.megabytes * 10**6)
    small = written(options.folder / "small", options.megabytes * 10**6 // 4)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": [], "small": []}
    for _ in range(options.rounds):
        for name, script, corpus in (("ours", OURS, large), ("theirs", THEIRS, large), ("small", OURS, small)):
            runs[name].append(measured(script, corpus, options.folder / "out", options.workers))
            print(name, json.dumps(runs[name][-1]), flush=True)
    shutil.rmtree(options.folder)
    speed = {name: median(run["tokens"] / run["seconds"] for run in done) for name, done in runs.items()}
    memory = {name: median(run["rss"] for run in done) for name, done in runs.items()}
    print(json.dumps({
        "tokens": runs["ours"][0]["tokens"], "their_tokens": runs["theirs"][0]["tokens"],
        "workers": options.workers, "rounds": options.rounds,
        "tokens_per_second": round(speed["ours"]), "their_tokens_per_second": round(speed["theirs"]),
        "tokens_ratio": round(speed["ours"] / speed["theirs"], 2),
        "corpus_ratio": round(runs["ours"][0]["tokens"] / runs["small"][0]["tokens"], 2),
        "memory_ratio": round(memory["ours"] / memory["small"], 2),
        "rss_mb": round(memory["ours"] / 1e6), "their_rss_mb": round(memory["theirs"] / 1e6),
    }))  # fmt: skip


def documents() -> Iterator[str]:
    """The chapters of both Bibles forever, the verses and a few of the words of each new every time."""
    chapters: dict[tuple[str, int, int], list[str]] = {}
    for name, verses in (("nya", sources.chichewa_bible()), ("en", sources.english_bible())):
        for (book, chapter, _), verse in verses:
            chapters.setdefault((name, book, chapter), []).append(verse)
    rng = random.Random(0)
    while True:
        for key in rng.sample(sorted(chapters), len(chapters)):
            words = " ".join(rng.sample(chapters[key], len(chapters[key]))).split(" ")
            for position in range(rng.randrange(NEW), len(words), NEW):
                words[position] = "".join(rng.choices(ascii_lowercase, k=8))
            yield " ".join(words)


def written(folder: Path, size: int) -> Path:
    """A corpus of about `size` bytes."""
    import pyarrow
    from pyarrow import parquet

    shutil.rmtree(folder, ignore_errors=True)
    parts = folder / "text" / "xx.train"
    parts.mkdir(parents=True)
    source = documents()
    for number in range(max(1, size // PART)):
        texts: list[str] = []
        size_of_part = 0
        while size_of_part < PART:
            texts.append(next(source))
            size_of_part += len(texts[-1].encode())
        parquet.write_table(
            pyarrow.table({"id": [str(i) for i in range(len(texts))], "text": texts}), parts / f"{number:05d}.parquet"
        )
    return folder


def measured(script: str, corpus: Path, out: Path, workers: int) -> dict[str, Any]:
    """Runs a script as a process.

    What it prints, and the peak of the resident memory of it and its children, in bytes.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    file = out / "script.py"
    file.write_text(script)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(file), str(corpus), str(MODEL), str(out), str(workers), str(BLOCK)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    tree, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        peak = max(peak, resident(tree))
        time.sleep(0.05)
    assert process.stdout is not None
    printed = process.stdout.read()
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return {**json.loads(printed.splitlines()[-1]), "rss": peak}


def resident(tree: psutil.Process) -> int:
    """Bytes of resident memory of a process and all that it started."""
    total = 0
    try:
        for process in (tree, *tree.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:  # ended between the two questions
        pass
    return total


if __name__ == "__main__":
    main()
