"""Checkpoints of a resumed training: which are complete, where a run starts, and which launch may resume it.

A folder `checkpoint-<step>` is complete if it has the file COMPLETE, which names the launch that saved it. Imports no
torch.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from common.errors import BadInput
from common.files import foreign_owner
from train.distributed import ZERO_STAGES
from train.settings import Compute

COMPLETE = "complete"  # written last: a checkpoint without it was cut off


def mark_complete(checkpoint: Path, compute: Compute) -> None:
    """Write that every process has written its part of a checkpoint."""
    saved_by = {"strategy": compute.strategy, "world_size": compute.world}
    (checkpoint / COMPLETE).write_text(json.dumps(saved_by) + "\n", encoding="utf-8")


def starting_point(work: Path, resume_state: Path | None) -> Path | None:
    """Return the last complete checkpoint of this run, or `resume_state`.

    Checkpoints that a crash cut off are removed.
    """
    complete = []
    for folder in sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if (folder / COMPLETE).exists():
            complete.append(folder)
        else:
            shutil.rmtree(folder)
    return complete[-1] if complete else resume_state


def check_state(state: Path, compute: Compute) -> None:
    """Raise BadInput for a state that this launch cannot resume from.

    One process and DDP share a format, whatever the number of processes; FSDP's is resharded when it is read;
    DeepSpeed's fits the number of processes that wrote it, with any model. The last two are pickles, whose content runs
    when torch and DeepSpeed load them, so those of another user are rejected.
    """
    text = (state / COMPLETE).read_text(encoding="utf-8")
    # an empty one is from before there were several strategies
    saved = json.loads(text or '{"strategy": "none", "world_size": 1}')
    formats = {"none": "torch", "ddp": "torch"}
    same = formats.get(saved["strategy"], saved["strategy"]) == formats.get(compute.strategy, compute.strategy)
    if not same or (compute.strategy in ZERO_STAGES and saved["world_size"] != compute.world):
        as_saved = f"compute.strategy={saved['strategy']} and compute.processes x compute.nodes = {saved['world_size']}"
        raise BadInput(
            f"compute.strategy={compute.strategy} on {compute.world} processes cannot resume from {state}, which was"
            f" saved by {saved['strategy']} on {saved['world_size']}. Set {as_saved}, or remove that folder's stage"
            " from the store (trainings of compute=fsdp resume on any number of processes)."
        )
    if compute.strategy not in formats:
        for path in (state, *state.rglob("*")):
            if wrong := foreign_owner(path):
                raise BadInput(
                    f"{path}: {wrong}, and a state of compute.strategy={compute.strategy} can run code when it "
                    "is loaded."
                    " Train in a store of your own, or with compute.strategy=ddp throughout."
                )


def publish_state(checkpoint: Path, state: Path) -> None:
    """Link a checkpoint as the published state: its files, which may have 80 GB, are not written again.

    The Trainer's arguments are left out: a pickle with paths of this machine, which no code reads.
    """
    unread = shutil.ignore_patterns("training_args.bin")
    shutil.copytree(checkpoint, state, dirs_exist_ok=True, copy_function=link, ignore=unread)


def link(source: str, target: str) -> None:
    """Link a file under a second name, or copy it if the file system has no links."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
