"""The memory of a plan, compared with measured peaks of this machine, and what it says of GPUs and nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from pipeline import sweep
from pipeline.config import Compute, Config, ModelShape
from pipeline.cost import hardware, memory, table
from pipeline.cost.estimate import checkpoint_bytes
from pipeline.cost.shape import Trained, all_weights, from_config_json, with_lora
from train.settings import LoraSettings, MemorySaving

ROOT = Path(__file__).parents[2]
WITHIN = 0.15
SHAPE = {"vocabulary": 8192, "hidden": 320, "layers": 6, "heads": 5, "kv_heads": 1, "feed_forward": 512, "tied": False}
LARGER = {
    "vocabulary": 16384,
    "hidden": 512,
    "layers": 8,
    "heads": 8,
    "kv_heads": 2,
    "feed_forward": 1536,
    "tied": True,
}
RANK = 8
TRAININGS: dict[str, tuple[int, dict[str, Any]]] = {  # tokens a step, compute
    "all at once": (1024, {}),
    "in two passes, recomputed": (512, {"micro_batch": 2, "gradient_checkpointing": True}),
    "in bf16": (512, {"precision": "bf16"}),
    "LoRA": (512, {}),
}
BF16 = {"precision": "bf16"}
RECOMPUTED = {"gradient_checkpointing": True, **BF16}
SAVING: dict[str, tuple[dict[str, Any], int | None, dict[str, Any]]] = {  # compute, rank of LoRA, dtypes
    "8-bit AdamW": ({}, None, {"optimizer": "adamw_8bit"}),
    "LoRA, bf16": (BF16, RANK, {}),
    "LoRA, bf16, recomputed": (RECOMPUTED, RANK, {}),
    "bfloat16 base, recomputed": (RECOMPUTED, RANK, {"base_dtype": "bfloat16"}),
    "nf4 base, fp32": ({}, RANK, {"base_dtype": "nf4"}),
    "nf4 base, bf16, recomputed": (RECOMPUTED, RANK, {"base_dtype": "nf4"}),
    "nf4 base, 8-bit AdamW, rank 64": (RECOMPUTED, 64, {"base_dtype": "nf4", "optimizer": "adamw_8bit"}),
}
QUANTIZED = {**LARGER, "vocabulary": 4096, "layers": 6}
SCORED = {"batch_tokens": 2048, "window": 256, "documents": 8, "dtype": "float32"}
LLAMA = table.TABLE_SHAPES["7B (Llama-2-7B)"]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the kernel's peak is read from Linux's /proc"
)


def adapted(shape: ModelShape, rank: int | None, **saving: Any) -> Trained:
    """Return the training of all weights, or that of LoRA of a rank."""
    if rank is None:
        return replace(all_weights(shape), saving=MemorySaving(**saving))
    lora = LoraSettings(rank=rank, alpha=16, dropout=0.0, targets="all-linear")
    return with_lora(shape, lora, MemorySaving(**saving))


@needs_proc
def test_planned_memory_is_what_a_process_holds_at_its_peak(tmp_path: Path) -> None:
    """One child, whose C library gives freed tensors back at once; the kernel counts the pages."""
    shape = ModelShape(**SHAPE)
    common: dict[str, Any] = {"model": "large", "shape": SHAPE}
    cases: list[dict[str, Any]] = [
        {
            "case": name,
            "work": "train",
            "batch_tokens": tokens,
            "block_size": 128,
            "compute": compute,
            "lora_rank": RANK if name == "LoRA" else None,
            **common,
        }
        for name, (tokens, compute) in TRAININGS.items()
    ]
    cases += [{"case": work, "work": work, **SCORED, **common} for work in ("score", "tune")]
    larger: dict[str, Any] = {"model": "larger", "shape": LARGER}
    cases += [{"case": f"larger, {work}", "work": work, **SCORED, **larger} for work in ("score", "tune")]
    sizes = {"batch_tokens": 512, "block_size": 128, "compute": {}, "lora_rank": None}
    cases.append({"case": "larger, train", "work": "train", **sizes, **larger})
    trained = (adapted(shape, None), adapted(shape, RANK))
    planned = {
        name: memory.training_memory(shape, Compute(**compute), tokens, 128, trained[name == "LoRA"]).total
        for name, (tokens, compute) in TRAININGS.items()
    }
    other = ModelShape(**LARGER)
    planned["larger, train"] = memory.training_memory(other, Compute(), 512, 128).total
    for name, each in {"": shape, "larger, ": other}.items():
        scored = memory.scoring_memory(each, 2048, "float32")
        planned |= {f"{name}score": scored, f"{name}tune": max(scored, memory.merging_memory(each, 4, 1))}
    assert other.parameters > 3 * shape.parameters
    check_peaks(cases, planned, tmp_path)


@needs_proc
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_planned_memory_of_fewer_bits_is_what_a_process_holds(tmp_path: Path) -> None:
    shape, cases, planned = ModelShape(**QUANTIZED), [], {}
    sizes = {"model": "quantized", "shape": QUANTIZED, "batch_tokens": 256, "block_size": 128}
    for name, (compute, rank, saving) in SAVING.items():
        cases.append({"case": name, "work": "train", "compute": compute, "lora_rank": rank, "saving": saving, **sizes})
        trained = adapted(shape, rank, **saving)
        planned[name] = memory.training_memory(shape, Compute(**compute), 256, 128, trained).total
    check_peaks(cases, planned, tmp_path)


def check_peaks(cases: list[dict[str, Any]], planned: dict[str, float], folder: Path) -> None:
    """Compare the plan with the peaks of a child, and print both in MiB."""
    (folder / "cases.json").write_text(json.dumps(cases))
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("measure_memory.py")), str(folder)],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"case"')]
    assert [row["case"] for row in rows] == [case["case"] for case in cases]
    for row in rows:
        plan, peak = (bytes_ / 2**20 for bytes_ in (planned[row["case"]], row["peak"]))
        print(f"| {row['case']} | {plan:.0f} | {peak:.0f} | {plan / peak:.2f} |")
    ratios = {row["case"]: planned[row["case"]] / row["peak"] for row in rows}
    assert {case: ratio for case, ratio in ratios.items() if abs(ratio - 1) > WITHIN} == {}, ratios


def test_constants_of_merging_are_those_of_the_engine() -> None:
    from merge.engine import passes, pieces

    theirs = (pieces.SLICE, passes.MEMORY, passes.RESIDENT_BYTES)
    assert theirs == (memory.SLICE, memory.RESIDENT, memory.RESIDENT_BYTES)


def test_gradients_of_earlier_passes_stay_and_others_take_the_place_of_activations() -> None:
    once = memory.training_memory(LLAMA, Compute(), 2048, 2048)
    twice = memory.training_memory(LLAMA, Compute(micro_batch=1), 4096, 2048)
    always = once.parameters + once.optimizer
    assert once.total == always + once.gradients + once.layer > always + once.activations + once.logits
    assert twice.total == always + once.gradients + once.activations + once.logits


def test_16_bits_cost_copies_without_sharding_and_fp16_is_as_wide_as_bf16() -> None:
    def held(precision: str, strategy: str, processes: int) -> memory.Memory:
        return memory.states(LLAMA, strategy, precision, processes, 1)

    assert held("bf16", "none", 1).copies == 2 * LLAMA.parameters
    assert held("fp32", "none", 1).copies == held("bf16", "fsdp", 8).copies == 0
    assert held("bf16", "zero2", 8).parameters == 2 * LLAMA.parameters, "and 4 of its 12 bytes are 32-bit weights"
    for strategy, processes in (("none", 1), ("ddp", 8), ("zero2", 8), ("zero3", 8), ("fsdp", 8)):
        assert held("fp16", strategy, processes) == held("bf16", strategy, processes)


def test_what_is_neither_states_nor_activations_is_counted() -> None:
    def held(strategy: str) -> float:
        compute = Compute(device="cuda", strategy=strategy, processes=8, precision="bf16")
        return memory.buffers(LLAMA, compute, all_weights(LLAMA))

    assert held("ddp") == 4 * LLAMA.parameters
    assert held("zero2") == 2 * 2 * memory.BUCKET
    assert held("zero3") == 2 * memory.BUCKET + 2 * memory.LIVE - 4 * LLAMA.embedding_parameters
    assert held("fsdp") == 2 * (LLAMA.outer_parameters + 3 * LLAMA.layer_parameters)


def test_generation_keeps_keys_and_values_and_gpus_share_a_model() -> None:
    plain = memory.scoring_memory(LLAMA, 8192, "bfloat16")
    generating = memory.scoring_memory(LLAMA, 8192, "bfloat16", cached_tokens=8192)
    weights = 2 * LLAMA.parameters
    assert plain - weights == 8192 * (8 * LLAMA.vocabulary + 2 * LLAMA.hidden)
    assert generating - weights == 8192 * 2 * LLAMA.hidden * LLAMA.layers * 2
    assert memory.scoring_memory(LLAMA, 8192, "bfloat16", gpus=2) < plain - weights / 3


@cache
def paper(*overrides: str) -> Config:
    return sweep.expand(("experiment=paper", *overrides), multirun=False).configs[0]


def on_node(config: Config, name: str) -> dict[str, float]:
    cluster = hardware.parse_cluster(name)
    fitted = memory.on_cluster(config, cluster)
    return memory.node_memory(fitted, memory.memory_of_trainings(fitted), cluster.per_node)


def test_every_process_of_a_node_loads_32_bits_in_its_main_memory() -> None:
    needs = on_node(paper("compute=fsdp"), "8xH100")
    assert needs["ct"] == 8 * (4 * LLAMA.parameters + memory.PROCESS)
    assert needs["scoring"] == 8 * (2 * LLAMA.parameters + memory.PROCESS)
    assert on_node(paper("compute=zero3"), "8xH100")["ct"] < needs["ct"] / 4


def test_a_mean_of_weights_is_in_the_main_memory_of_ct_and_rules_out_shards() -> None:
    one = ("compute=gpu", "ct.schedule=wsd", "ct.decay_shape=average")
    plain, averaged = (on_node(paper(*words), "1xH200") for words in (one[:2], one))
    assert averaged["ct"] == 2 * plain["ct"] - memory.PROCESS and averaged["sft"] == plain["sft"]
    cluster = hardware.parse_cluster("8xH100")
    others = memory.alternatives(memory.on_cluster(paper(*one), cluster), cluster)
    assert {other.compute.strategy for other in others} == {"none"}


def test_a_node_with_too_little_main_memory_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import pipeline_main as main

    needs = on_node(paper("compute=fsdp"), "8xV100")
    small = hardware.Cluster(1, 8, replace(hardware.GPUS["V100"], host=10**11))
    assert memory.host_warning(needs, hardware.parse_cluster("8xH100")) is None
    assert memory.host_warning(needs, hardware.parse_cluster("4xH100")) is None, "only nodes of eight are known"
    assert "warning: ct takes 208.3 GiB of a node's main memory" in str(memory.host_warning(needs, small))
    assert main(["plan", "experiment=paper", "compute=fsdp", "cluster=8xH100"]) == 0
    said = capsys.readouterr().out
    assert "main memory of a node: ct 208, sft 208, scoring 108 GiB (8 checkpoints scored at once)" in said


def test_bf16_on_a_gpu_without_it_is_refused() -> None:
    cluster = hardware.parse_cluster("1xT4")
    config = sweep.expand(("experiment=smollm2", "compute.precision=bf16"), multirun=False).configs[0]
    with pytest.raises(
        BadInput, match=r"CLUSTER=1xT4: T4 does not support bf16, got compute.precision=bf16\. Set fp16"
    ):
        memory.check_fit(memory.on_cluster(config, cluster), cluster)


def test_a_trained_checkpoint_is_published_in_32_bits() -> None:
    assert checkpoint_bytes(LLAMA, paper()) == 4 * LLAMA.parameters
    low = paper("train=lora")
    assert checkpoint_bytes(LLAMA, low) > 4 * LLAMA.parameters, "and LoRA's additions beside it"


def test_shapes_of_other_models(tmp_path: Path) -> None:
    """Counted by transformers: heads of their own width, experts, and the text model of one that sees too."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, Qwen3MoeConfig

    small: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 16}
    experts = Qwen3MoeConfig(**small, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    experts.save_pretrained(tmp_path / "experts")
    shape = from_config_json(tmp_path / "experts" / "config.json")
    assert (shape.head_dim, shape.experts, shape.active_experts, shape.feed_forward) == (16, 4, 2, 24)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(experts)
    norms = 2 * 2 * 16  # of queries and keys, which the shape leaves out
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters()) - norms
    assert shape.parameters - shape.matmul_parameters == 2 * 2 * 3 * 24 * 32 + shape.embedding_parameters

    sees = Gemma3Config(text_config=small)
    sees.save_pretrained(tmp_path / "sees")
    text = from_config_json(tmp_path / "sees" / "config.json")
    assert (text.hidden, text.layers, text.head_dim, text.tied) == (32, 2, 16, True)
    assert Gemma3ForConditionalGeneration.config_class is Gemma3Config


def test_the_table_of_sizes_is_that_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import pipeline_main as main

    assert main(["plan", "--memory-table"]) == 0
    printed = capsys.readouterr().out
    assert printed in (ROOT / "docs" / "how-to" / "train-on-a-small-gpu.md").read_text(encoding="utf-8")
    by_row = {(name.split()[0], method): count / 2**30 for name, method, count in table.memory_rows()}
    assert by_row["1B", "LoRA"] < by_row["1B", "bf16"]
    for model in ("1B", "3B", "7B"):
        smaller = [by_row[model, f"LoRA{base}"] for base in ("", ", bfloat16 base", ", nf4 base")]
        assert smaller == sorted(smaller, reverse=True)
    assert by_row["7B", "fp32"] > 6.7e9 * 16 / 2**30
