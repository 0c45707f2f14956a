"""What one process of a torchrun does in test_distributed.py.

Several trainings one after the other, as each start costs seconds.

`torchrun --nproc_per_node=2 torchrun_trainings.py PREPARED OUT STRATEGY`; PREPARED holds `model`, `blocks` and
`settings.json`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import Interrupted
from train import trainer
from train.dev_text import DevEvaluation
from train.settings import Compute, FrozenColumns, LoraSettings, TrainingSettings

LORA = LoraSettings(rank=2, alpha=4, dropout=0.0, targets="all-linear")
AVERAGED: dict[str, Any] = {
    "schedule": "wsd",
    "decay_tokens": 512,
    "decay_shape": "average",
    "averaged_checkpoints": 2,
}


class Killed(Exception):
    """Stands for the death of all processes."""


def dying_at(step: int) -> Callable[[], bool]:
    calls: list[int] = []

    def should_stop() -> bool:
        calls.append(1)
        if len(calls) == step:
            raise Killed
        return False

    return should_stop


def told_at(step: int, told: bool) -> Callable[[], bool]:
    calls: list[int] = []

    def should_stop() -> bool:
        calls.append(1)
        return told and len(calls) >= step

    return should_stop


def main(prepared: Path, out: Path, strategy: str) -> None:
    compute = Compute(threads=1, strategy=strategy, processes=int(os.environ["WORLD_SIZE"]), micro_batch=1)
    settings = TrainingSettings(**json.loads((prepared / "settings.json").read_text()))

    def run(name: str, tokens: int, blocks: str = "blocks", **more: Any) -> None:
        folder, changes = out / name, {key: more.pop(key) for key in settings.field_names() & more.keys()}
        facts = trainer.train(
            prepared / "model",
            prepared / blocks,
            settings.replace(tokens=tokens, **changes),
            folder / "out",
            work=folder / "work",
            save_every_tokens=512,
            compute=compute,
            **more,
        )
        (folder / f"facts-{os.environ['RANK']}.json").write_text(json.dumps(facts))

    run("whole", 2048)
    run("masked", 1024, "masked", watched=DevEvaluation(str(prepared / "corpus"), ("xx", "en"), 512))
    run("half", 1024)
    run("chained", 2048, resume_state=out / "half" / "out" / "state")
    try:  # after the checkpoint at step 8, before the one at step 12
        run("killed", 2048, should_stop=dying_at(11))
    except Killed:
        run("killed", 2048)
    try:  # only one of the processes is told; all of them stop
        run("stopped", 2048, should_stop=told_at(6, os.environ["RANK"] == "1"))
    except Interrupted as stop:
        if os.environ["RANK"] == "0":
            (out / "stopped" / "said").write_text(str(stop))
        run("stopped", 2048)
    if strategy != "zero3_offload":
        run("bf16", 1024, precision="bf16")
        run("bf16_lora", 1024, precision="bf16", lora=LORA)
    if strategy == "ddp":  # goes on from what one process saved
        run("from_one", 2048, resume_state=prepared / "one_half" / "out" / "state")
        half = FrozenColumns(fraction=0.5, blocks=4)
        run("frozen", 1024, "masked", frozen_columns=half, calibration_dir=prepared / "masked")
        run("averaged", 1024, **AVERAGED)
        if (prepared / "one_nf4").exists():
            run("nf4", 1024, lora=LORA, base_dtype="nf4", optimizer="adamw_8bit")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    sys.stderr.flush()
    os._exit(0)  # as train/__main__.py
