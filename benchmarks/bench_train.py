"""Our training stage against a bare PyTorch loop on the same blocks, and against a plain transformers Trainer.

The Trainer has the same text, a document a row, padded.

    python benchmarks/bench_train.py [--model models/tiny-base] [--steps 20] [--rounds 9] [--batch-tokens 2000]
                                     [--block-size 250] [--threads 1] [--device cpu]

The text is the Bible's verses, a document each, from the packages of the default experiment: the nearest there is to
the short documents of the web and of instructions. What counts is tokens of text a second from the second step to the
last: our log and a checkpoint are part of it, loading is not. All three run in one process, in turns, each round
beginning with another; the ratios are medians over the rounds. The last line is JSON: {bare_ratio, padded_ratio, ...};
the same by CPU seconds instead of the clock's, on a CPU, says what is ours and what is that of other programs on the
machine.
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

from train import trainer
from train.data.corpus import sources
from train.settings import Compute, TrainingSettings

RATE, WARMUP_RATIO, MIN_LR_RATIO = 5e-4, 0.01, 0.1
HORIZON = 1000  # steps of the schedule: none of the runs reaches its end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/tiny-base"))
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps a run")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-tokens", type=int, default=2000)
    parser.add_argument("--block-size", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        ways = prepare(options, Path(folder))
        speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(-1, options.rounds):  # the first turn warms up and is not counted
            names = list(ways)
            for name in names[turn % 3 :] + names[: turn % 3]:
                speed = ways[name]()
                if turn >= 0:
                    speeds[name].append(speed)
                    print(
                        f"round {turn + 1} {name}: {speed[0]:,.0f} tokens/s, {speed[1]:,.0f} a CPU second", flush=True
                    )
    result: dict[str, Any] = {}
    for measure, suffix in enumerate(("", "_by_cpu_time")):
        for name in ("bare", "padded"):
            pairs = zip(speeds["ours"], speeds[name], strict=True)
            result[f"{name}_ratio{suffix}"] = round(median(ours[measure] / other[measure] for ours, other in pairs), 3)
    result |= {
        f"{name}_tokens_per_second": round(median(speed for speed, _ in measured)) for name, measured in speeds.items()
    }
    print(
        json.dumps(
            {
                **result,
                "model": options.model.name,
                "rounds": options.rounds,
                "steps": options.steps,
                "threads": options.threads,
            }
        )
    )


class Meter:
    """Tokens a second, by the clock and by this process's CPU time, between the first mark and the last."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, float]] = []

    def mark(self, tokens: float) -> None:
        """So many tokens are done now."""
        self.marks.append((tokens, time.monotonic(), time.process_time()))

    def speeds(self) -> tuple[float, float]:
        (before, *began), (after, *ended) = self.marks[0], self.marks[-1]
        clock, cpu = ((after - before) / (end - begin) for begin, end in zip(began, ended, strict=True))
        return clock, cpu


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], tuple[float, float]]]:
    """The same text as blocks and as rows; each way to train on it, as a function that gives its tokens a second."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    end, size, batch = tokenizer.eos_token_id, options.block_size, options.batch_tokens // options.block_size
    wanted = options.steps * batch * size
    rows: list[list[int]] = []
    total = 0
    for _, verse in sources.english_bible():
        rows.append([*tokenizer(verse, add_special_tokens=False)["input_ids"], end])
        total += len(rows[-1])
        if total >= wanted:
            break
    tokens = [token for row in rows for token in row]
    blocks = np.array(tokens[:wanted]).reshape(-1, size)
    (folder / "blocks").mkdir()
    np.save(folder / "blocks" / "blocks.npy", blocks.astype(np.uint32))
    lengths = [len(row) for row in rows]
    print(
        f"{len(rows)} documents of {np.mean(lengths):.0f} tokens on average (longest {max(lengths)}),"
        f" or {len(blocks)} blocks of {size}"
    )
    return {
        "ours": lambda: ours(options, folder, wanted),
        "bare": lambda: bare(options, torch.from_numpy(blocks.astype(np.int64)), batch),
        "padded": lambda: padded(options, rows, round(options.batch_tokens / np.mean(lengths)), tokenizer),
    }


def ours(options: argparse.Namespace, folder: Path, tokens: int) -> tuple[float, float]:
    """The stage as the pipeline runs it, with its log and a checkpoint half-way."""
    settings = TrainingSettings(
        tokens=tokens,
        schedule_tokens=HORIZON * options.batch_tokens,
        batch_tokens=options.batch_tokens,
        block_size=options.block_size,
        learning_rate=RATE,
        min_lr_ratio=MIN_LR_RATIO,
        warmup_ratio=WARMUP_RATIO,
        weight_decay=0.0,
        seed=0,
    )
    with tempfile.TemporaryDirectory(dir=folder) as run:
        meter = Meter()
        compute = Compute(device=options.device, threads=options.threads)
        trainer.train(
            options.model,
            folder / "blocks",
            settings,
            Path(run) / "out",
            work=Path(run) / "work",
            save_every_tokens=tokens // 2,
            compute=compute,
            on_log=lambda record: meter.mark(record["tokens"]),
        )
    return meter.speeds()


def bare(options: argparse.Namespace, blocks: torch.Tensor, batch: int) -> tuple[float, float]:
    """The loop that one would write by hand: AdamW, a schedule, clipping, nothing else."""
    model = (
        transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(options.device).train()
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, round(WARMUP_RATIO * HORIZON), HORIZON)
    meter = Meter()
    for step, ids in enumerate(blocks.to(options.device).split(batch), start=1):
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step in (2, len(blocks) // batch):
            if options.device == "cuda":
                torch.cuda.synchronize()
            meter.mark(step * ids.numel())
    return meter.speeds()


def padded(options: argparse.Namespace, rows: list[list[int]], batch: int, tokenizer: Any) -> tuple[float, float]:
    """transformers' Trainer as its tutorials have it: a document a row, each batch padded to its longest row.

    A step has as many tokens of text as ours.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=RATE,
            adam_beta2=0.95, lr_scheduler_type="cosine", save_strategy="no", report_to="none", disable_tqdm=True,
            train_sampling_strategy="sequential", use_cpu=options.device == "cpu", logging_steps=10,
        )  # fmt: skip
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        plain = transformers.Trainer(
            model=model, args=arguments, train_dataset=[{"input_ids": row} for row in rows], data_collator=collator
        )
        plain.remove_callback(transformers.PrinterCallback)
        meter = Meter()
        plain.add_callback(Steps(lambda step: meter.mark(sum(map(len, rows[: step * batch])))))
        plain.train()
    return meter.speeds()


class Steps(transformers.TrainerCallback):
    """Says how many steps are done."""

    def __init__(self, done: Callable[[int], None]) -> None:
        self.done = done

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= 2:
            self.done(state.global_step)


if __name__ == "__main__":
    main()
