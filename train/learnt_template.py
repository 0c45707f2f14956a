"""The chat template that a checkpoint learnt: the template, and the token that ends an answer.

It is next to the blocks that SFT was trained on (train/data/packing.py writes it). If several trainings of one line
have templates, the last one counts.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

TEMPLATE, STOP = "chat_template.jinja", "chat_stop.json"


@dataclass(frozen=True)
class TrainedTemplate:
    """A chat template's text, and the token that ends its answers."""

    template: str
    stop_token: str


def read_trained_template(blocks: Path) -> TrainedTemplate | None:
    """Return the template that a folder of blocks teaches; None if it is none of conversations."""
    if not (blocks / TEMPLATE).exists():
        return None
    stop = json.loads((blocks / STOP).read_text(encoding="utf-8"))["stop_token"]
    return TrainedTemplate((blocks / TEMPLATE).read_text(encoding="utf-8"), stop)


def write_trained_template(teaches: TrainedTemplate, blocks: Path) -> None:
    """Write a template beside the blocks that teach it."""
    (blocks / TEMPLATE).write_text(teaches.template, encoding="utf-8")
    (blocks / STOP).write_text(json.dumps({"stop_token": teaches.stop_token}) + "\n", encoding="utf-8")


def copy_trained_template(blocks: Path, others: Path) -> None:
    """Leave what blocks teach beside others that are made of them."""
    for name in (TEMPLATE, STOP):
        if (blocks / name).exists():
            shutil.copy(blocks / name, others / name)


def add_stop_token(folder: Path, token: int) -> None:
    """Add a token to those that end a generation of the checkpoint in a folder."""
    from transformers import GenerationConfig

    config = GenerationConfig.from_pretrained(folder)
    known = config.eos_token_id
    ids = [] if known is None else [known] if isinstance(known, int) else list(known)
    if token not in ids:
        config.eos_token_id = [*ids, token]
        config.save_pretrained(folder)
