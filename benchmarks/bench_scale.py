"""The plan's FLOPs and memory from 1 B to 70 B against published runs; prints one line per run, and JSON last.

    python benchmarks/bench_scale.py

Time: the utilisation (MFU) that a published run's GPU-hours mean by our FLOPs. Memory: our model states under ZeRO-3
against the 16 bytes a parameter of Rajbhandari et al. 2020, to which DeepSpeed adds 32-bit gradients: 18.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from pipeline.config.models import ModelShape
from pipeline.cost import memory
from pipeline.cost.hardware import GPUS
from pipeline.cost.shape import training_flops

A100 = GPUS["A100"]


class Published(NamedTuple):
    """A run: tokens a second and GPU, as published or from its tokens and GPU-hours; the MFU that it states."""

    shape: ModelShape
    context: int
    tokens_per_second: float
    source: str
    stated_mfu: float | None = None


def llama(hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int) -> ModelShape:
    return ModelShape(
        vocabulary=32_000, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, feed_forward=feed_forward,
        tied=False,
    )  # fmt: skip


LLAMA_2 = "Touvron et al. 2023, Llama 2, tables 1 and 2: 2 T tokens in {} A100 hours"
RUNS = {
    "TinyLlama 1.1B": Published(
        llama(2048, 22, 32, 4, 5632), 2048, 24_000, "TinyLlama's README: 24k tokens/s a GPU, MFU 56 %", 0.56
    ),
    "Llama 2 7B": Published(llama(4096, 32, 32, 32, 11008), 4096, 2e12 / 184_320 / 3600, LLAMA_2.format("184,320")),
    "Llama 2 13B": Published(llama(5120, 40, 40, 40, 13824), 4096, 2e12 / 368_640 / 3600, LLAMA_2.format("368,640")),
    "Llama 2 70B": Published(llama(8192, 80, 64, 8, 28672), 4096, 2e12 / 1_720_320 / 3600, LLAMA_2.format("1,720,320")),
}


def main() -> None:
    rows = {}
    for name, run in RUNS.items():
        mfu = run.tokens_per_second * training_flops(run.shape, run.context) / A100.peak("bf16")
        states = memory.states(run.shape, "zero3", "bf16", 8, 1).states
        rows[name] = {
            "parameters": run.shape.parameters, "tokens_per_second_a_gpu": round(run.tokens_per_second),
            "implied_mfu": round(mfu, 3), "stated_mfu": run.stated_mfu,
            "zero3_bytes_a_parameter": round(states * 8 / run.shape.parameters, 2),
            "zero3_states_gb_a_gpu_of_8": round(states / 1e9, 1),
        }  # fmt: skip
        print(f"{name}: MFU {mfu:.1%} ({run.source})")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
