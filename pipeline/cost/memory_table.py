"""Which model sizes train on which GPUs: a table in Markdown, from the plan's own count of memory."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.models import ModelShape
from pipeline.cost import memory
from pipeline.cost.hardware import USABLE
from train.settings import Compute

SHAPES = {  # by their config.json
    "1B (Llama-3.2-1B)": ModelShape(
        vocabulary=128256, hidden=2048, layers=16, heads=32, kv_heads=8, feed_forward=8192, tied=True
    ),
    "3B (Llama-3.2-3B)": ModelShape(
        vocabulary=128256, hidden=3072, layers=28, heads=24, kv_heads=8, feed_forward=8192, tied=True
    ),
    "7B (Llama-2-7B)": ModelShape(
        vocabulary=32000, hidden=4096, layers=32, heads=32, kv_heads=32, feed_forward=11008, tied=False
    ),
}
METHODS = {"fp32": ("fp32", False), "bf16": ("bf16", False), "LoRA, bf16": ("bf16", True)}  # precision, LoRA
GIGABYTES = (16, 24, 40, 80)
BLOCK, PASSES, RANK = 2048, 2, 64  # the rank of conf/train/lora.yaml


def needs(shape: ModelShape, precision: str, lora: bool) -> float:
    """Return bytes of the one GPU that trains: one block in a pass, several passes a step, activations recomputed."""
    compute = Compute(device="cuda", precision=precision, gradient_checkpointing=True, micro_batch=1)
    trained = shape.lora_parameters(RANK, "all-linear") if lora else None
    return memory.training(shape, compute, PASSES * BLOCK, BLOCK, trained).total


def rows() -> Iterator[tuple[str, str, float]]:
    """Return rows of (model, method, bytes per GPU)."""
    for name, shape in SHAPES.items():
        for method, (precision, lora) in METHODS.items():
            yield name, method, needs(shape, precision, lora)


def markdown() -> str:
    """Return the table; a GPU's memory counts as in the plan, to the share that a training may fill."""
    lines = [
        f"| model | trained | needs, GiB | {' | '.join(f'{size} GB' for size in GIGABYTES)} |",
        f"|---|---|---|{'---|' * len(GIGABYTES)}",
    ]
    for name, method, count in rows():
        fits = ("yes" if count <= USABLE * size * 2**30 else "no" for size in GIGABYTES)
        lines.append(f"| {name} | {method} | {count / 2**30:.1f} | {' | '.join(fits)} |")
    return "\n".join(lines)
