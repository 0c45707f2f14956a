"""Our training stage against a bare PyTorch loop on the same blocks, and against a plain transformers Trainer on the same text, a document a row, padded.

    python benchmarks/bench_train.py [--model models/tiny-base] [--steps 30] [--rounds 5] [--batch-tokens 2000] [--block-size 250] [--threads 1] [--device cpu]

The text is the Bible's verses, a document each, from the packages of the default experiment: the nearest there is to the short documents of the web and of
instructions. What counts is tokens of text a second of the training itself: our checkpoints and log are part of it, loading is not. All three run in
one process, in turns, each round beginning with another; the ratios are medians over the rounds. The last line is JSON: {bare_ratio, padded_ratio, ...}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from train import bible, trainer
from train.parallel import Compute

RATE, WARMUP_RATIO, MIN_LR_RATIO = 5e-4, 0.01, 0.1
HORIZON = 1000  # steps of the schedule: none of the runs reaches its end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/tiny-base"))
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=2000)
    parser.add_argument("--block-size", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        ways = prepare(options, Path(folder))
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(-1, options.rounds):  # the first turn warms up and is not counted
            names = list(ways)
            for name in names[turn % 3 :] + names[: turn % 3]:
                speed = ways[name]()
                if turn >= 0:
                    speeds[name].append(speed)
                    print(f"round {turn + 1} {name}: {speed:,.0f} tokens/s", flush=True)
    result: dict[str, Any] = {
        f"{name}_ratio": round(median(ours / other for ours, other in zip(speeds["ours"], speeds[name], strict=True)), 3) for name in ("bare", "padded")
    }
    result |= {f"{name}_tokens_per_second": round(median(found)) for name, found in speeds.items()}
    print(json.dumps({**result, "model": options.model.name, "rounds": options.rounds, "steps": options.steps, "threads": options.threads}))


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], float]]:
    """The same text as blocks and as rows; each way to train on it, as a function that gives its tokens a second."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    end, size, batch = tokenizer.eos_token_id, options.block_size, options.batch_tokens // options.block_size
    wanted = options.steps * batch * size
    rows: list[list[int]] = []
    total = 0
    for _, verse in bible.english():
        rows.append([*tokenizer(verse, add_special_tokens=False)["input_ids"], end])
        total += len(rows[-1])
        if total >= wanted:
            break
    tokens = [token for row in rows for token in row]
    blocks = np.array(tokens[:wanted]).reshape(-1, size)
    (folder / "blocks").mkdir()
    np.save(folder / "blocks" / "blocks.npy", blocks.astype(np.uint32))
    lengths = [len(row) for row in rows]
    print(f"{len(rows)} documents of {np.mean(lengths):.0f} tokens on average (longest {max(lengths)}), or {len(blocks)} blocks of {size}")
    return {
        "ours": lambda: ours(options, folder, wanted),
        "bare": lambda: bare(options, torch.from_numpy(blocks.astype(np.int64)), batch),
        "padded": lambda: padded(options, rows, round(options.batch_tokens / np.mean(lengths)), tokenizer),
    }


def ours(options: argparse.Namespace, folder: Path, tokens: int) -> float:
    """The stage as the pipeline runs it, with a checkpoint half-way and one at the end."""
    settings = {
        "tokens": tokens, "schedule_tokens": HORIZON * options.batch_tokens, "batch_tokens": options.batch_tokens, "block_size": options.block_size,
        "learning_rate": RATE, "min_lr_ratio": MIN_LR_RATIO, "warmup_ratio": WARMUP_RATIO, "weight_decay": 0.0,
        "save_every_tokens": tokens // 2, "seed": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as run:
        seen: list[dict[str, float]] = []
        compute = Compute(device=options.device, threads=options.threads)
        trainer.train(options.model, folder / "blocks", settings, Path(run) / "out", work=Path(run) / "work", compute=compute, on_log=seen.append)
    return seen[-1]["tokens_per_second"]


def bare(options: argparse.Namespace, blocks: torch.Tensor, batch: int) -> float:
    """The loop that one would write by hand: AdamW, a schedule, clipping, nothing else."""
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, round(WARMUP_RATIO * HORIZON), HORIZON)
    started = time.monotonic()
    for ids in blocks.to(options.device).split(batch):
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    if options.device == "cuda":
        torch.cuda.synchronize()
    return blocks.numel() / (time.monotonic() - started)


def padded(options: argparse.Namespace, rows: list[list[int]], batch: int, tokenizer: Any) -> float:
    """transformers' Trainer as its tutorials have it: a document a row, each batch padded to its longest row; a step has as many tokens of text as ours."""
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=RATE, adam_beta2=0.95, lr_scheduler_type="cosine",
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=options.device == "cpu", logging_steps=10,
        )  # fmt: skip
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        plain = transformers.Trainer(model=model, args=arguments, train_dataset=[{"input_ids": row} for row in rows], data_collator=collator)
        plain.remove_callback(transformers.PrinterCallback)
        clock = Clock()
        plain.add_callback(clock)
        plain.train()
    return sum(map(len, rows)) / clock.seconds


class Clock(transformers.TrainerCallback):
    """The seconds between the first step's start and the last one's end, as ours are counted."""

    seconds = started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.monotonic()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.monotonic() - self.started


if __name__ == "__main__":
    main()
