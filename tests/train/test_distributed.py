"""Every strategy on two CPU processes, held against one process.

DeepSpeed's first run builds an extension with g++ (a minute or two, then cached).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import BadInput
from tests.train.torchrun_trainings import AVERAGED, LORA
from train import base_model, trainer
from train.dev_text import DevEvaluation
from train.resume import COMPLETE, check_state
from train.settings import BaseModelSettings, Compute, FrozenColumns, TrainingSettings

ROOT = Path(__file__).parents[2]
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None and shutil.which("g++") is not None
OFFLOAD_BUILT = any(
    Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions")).glob("**/cpu_adam*.so")
)
needs_deepspeed = pytest.mark.skipif(not DEEPSPEED, reason="ZeRO on a CPU needs deepspeed and g++")
needs_offload = pytest.mark.skipif(
    not (DEEPSPEED and (OFFLOAD_BUILT or os.environ.get("TEST_OFFLOAD"))),
    reason="DeepSpeed's CPU Adam is not built here, which takes minutes; say TEST_OFFLOAD=1 to build and test it",
)
SHARDED = ("zero3", "zero3_offload", "fsdp")
WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp": "FSDPLlamaForCausalLM"}
# float32 sums of gradients in another order, and AdamW on top of them; the largest difference that was seen is 2.4e-7
TOLERANCE = {"atol": 2e-6, "rtol": 1e-5}


@pytest.fixture(scope="module")
def prepared(
    corpus_dir: Path,
    recipe: BaseModelSettings,
    training: TrainingSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model, its blocks, blocks whose labels are masked unevenly, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("prepared")
    base_model.prepare(corpus_dir, recipe, folder)
    (folder / "settings.json").write_text(json.dumps(training.model_dump()))
    shutil.copytree(folder / "blocks", folder / "masked")
    labels = np.load(folder / "blocks" / "blocks.npy").astype(np.int32)
    for row, length in enumerate(np.random.default_rng(0).integers(0, 31, len(labels))):
        labels[row, :length] = -100
    np.save(folder / "masked" / "labels.npy", labels)
    nf4 = {"lora": LORA, "base_dtype": "nf4", "optimizer": "adamw_8bit"}
    alone: list[tuple[str, int, str, dict[str, Any]]] = [
        ("one_whole", 2048, "blocks", {}),
        ("one_half", 1024, "blocks", {}),
        ("one_masked", 1024, "masked", {}),
        ("one_bf16", 1024, "blocks", {"precision": "bf16"}),
        ("one_frozen", 1024, "masked", {"frozen_columns": FrozenColumns(fraction=0.5, blocks=4)}),
        ("one_averaged", 1024, "blocks", AVERAGED),
        *([("one_nf4", 1024, "blocks", nf4)] if importlib.util.find_spec("bitsandbytes") else []),
    ]
    for name, tokens, blocks, changes in alone:
        trainer.train(
            folder / "model",
            folder / blocks,
            training.replace(tokens=tokens, **changes),
            folder / name / "out",
            work=folder / name / "work",
            save_every_tokens=512,
            compute=Compute(threads=1),
            watched=DevEvaluation(str(corpus_dir), ("xx", "en"), 512) if name == "one_masked" else None,
            calibration_dir=folder / "masked",
        )
    (folder / "corpus").symlink_to(corpus_dir)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "model" / "model.safetensors")


def dev_bits(log: Path) -> dict[int, dict[str, float]]:
    """What was measured on dev, by tokens."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line["tokens"]: line["dev_bits_per_byte"] for line in lines if "dev_bits_per_byte" in line}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    pairs = [(tensor, second[name]) for name, tensor in first.items()]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def check_bf16(trained: Path, prepared: Path) -> None:
    """Published after passes in bfloat16: the float32 weights that the optimizer updates, trained as by one process."""
    published, alone, start = weights(trained), weights(prepared / "one_bf16"), start_of(prepared)
    assert published.keys() == alone.keys() == start.keys()
    assert share_of_bf16(published.values()) < 0.01
    off, moved = (max(float((published[name] - other[name]).abs().max()) for name in start) for other in (alone, start))
    assert off < moved / 4, "seen: 0.0026 of 0.059"
    if (trained / "out" / "state" / "zero_to_fp32.py").exists():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        updated = get_fp32_state_dict_from_zero_checkpoint(str(trained / "out" / "state"))
        assert all(torch.equal(updated[name].view_as(tensor), tensor) for name, tensor in published.items())


def check_bf16_lora(trained: Path, prepared: Path) -> None:
    """LoRA with passes in bfloat16: matrices are sums in float32, and all else is the base's, unrounded."""
    published, start = weights(trained), start_of(prepared)
    sums = [name for name in start if name.endswith("_proj.weight")]
    others = [name for name in start if name not in sums]
    assert share_of_bf16(start[name] for name in others if start[name].dim() > 1) < 0.01, "rounding would show"
    assert [name for name in others if not torch.equal(published[name], start[name])] == []
    assert sums and not any(torch.equal(published[name], start[name]) for name in sums)
    assert share_of_bf16(published[name] for name in sums) < 0.01


def start_of(prepared: Path) -> dict[str, torch.Tensor]:
    """The weights that every training starts from."""
    return load_file(prepared / "model" / "model.safetensors")


def share_of_bf16(tensors: Iterable[torch.Tensor]) -> float:
    """The share of values that bfloat16 holds without rounding."""
    values = torch.cat([tensor.flatten() for tensor in tensors])
    return (values == values.bfloat16().float()).float().mean().item()


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        "fsdp",
        pytest.param("zero2", marks=needs_deepspeed),
        pytest.param("zero3", marks=needs_deepspeed),
        pytest.param("zero3_offload", marks=needs_offload),
    ],
)
def test_two_processes_train_what_one_does(strategy: str, prepared: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TQDM_DISABLE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(Path(__file__).with_name("torchrun_trainings.py")),
    ]
    done = subprocess.run(
        [*command, str(prepared), str(tmp_path), strategy],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    whole = weights(tmp_path / "whole")
    differences = {
        "one process": close(whole, weights(prepared / "one_whole")),
        "masked labels": close(weights(tmp_path / "masked"), weights(prepared / "one_masked")),
        **{name: close(weights(tmp_path / name), whole) for name in ("chained", "killed", "stopped")},
    }
    print(f"\n{strategy:14}", "  ".join(f"{name} {difference:.1e}" for name, difference in differences.items()))
    assert not same(weights(tmp_path / "half"), whole)

    ours, one = (dev_bits(folder / "out" / "log.jsonl") for folder in (tmp_path / "masked", prepared / "one_masked"))
    assert ours.keys() == one.keys() == {0, 512, 1024}
    assert all(ours[tokens] == pytest.approx(one[tokens], abs=2e-5) for tokens in one)

    for rank in (0, 1):
        facts = json.loads((tmp_path / "whole" / f"facts-{rank}.json").read_text())
        assert (facts["strategy"], facts["world_size"]) == (strategy, 2)
        assert facts["wrapper"] == WRAPPERS.get(strategy, "DeepSpeedEngine")
        assert facts["zero_stage"] == {"zero2": 2, "zero3": 3, "zero3_offload": 3}.get(strategy, 0)
        assert (facts["held_parameters"] < 0.6) == (strategy in SHARDED)

    if strategy != "zero3_offload":  # DeepSpeed's CPU Adam rounds by where its arrays happen to lie
        assert differences["chained"] == differences["killed"] == differences["stopped"] == 0
    assert (tmp_path / "stopped" / "said").read_text().startswith("stopped after 768 of 2,048 tokens")
    log = [json.loads(line)["tokens"] for line in (tmp_path / "killed" / "out" / "log.jsonl").read_text().splitlines()]
    assert log == sorted(set(log)) and log[-1] == 2048
    if strategy != "zero3_offload":
        check_bf16(tmp_path / "bf16", prepared)
        check_bf16_lora(tmp_path / "bf16_lora", prepared)
    if strategy == "ddp":
        close(weights(tmp_path / "from_one"), weights(prepared / "one_whole"))
        close(weights(tmp_path / "frozen"), weights(prepared / "one_frozen"))
        close(weights(tmp_path / "averaged"), weights(prepared / "one_averaged"))
        if (prepared / "one_nf4").exists():
            close(weights(tmp_path / "nf4"), weights(prepared / "one_nf4"))

    published = tmp_path / "chained" / "out" / "model"
    assert {path.name for path in published.iterdir()} == {
        path.name for path in (prepared / "one_whole" / "out" / "model").iterdir()
    }
    assert AutoTokenizer.from_pretrained(published).eos_token == base_model.END
    model, info = AutoModelForCausalLM.from_pretrained(published, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(model.get_input_embeddings().weight, whole["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("saved", "compute", "fits"),
    [
        (("none", 1), Compute(strategy="ddp", processes=4), True),
        (("ddp", 4), Compute(), True),
        (("fsdp", 4), Compute(strategy="fsdp", processes=2), True),
        (("zero3", 4), Compute(strategy="zero3", processes=2, nodes=2), True),
        (("zero3", 4), Compute(strategy="zero3", processes=2), False),
        (("zero2", 2), Compute(strategy="zero3", processes=2), False),
        (("none", 1), Compute(strategy="zero2", processes=2), False),
    ],
)
def test_a_state_is_refused_where_its_format_does_not_fit(
    saved: tuple[str, int], compute: Compute, fits: bool, tmp_path: Path
) -> None:
    (tmp_path / COMPLETE).write_text(json.dumps({"strategy": saved[0], "world_size": saved[1]}))
    if fits:
        check_state(tmp_path, compute)
    else:
        with pytest.raises(BadInput, match=f"was saved by {saved[0]} on {saved[1]}"):
            check_state(tmp_path, compute)


@pytest.mark.parametrize(("strategy", "taken"), [("none", True), ("ddp", True), ("fsdp", False), ("zero2", False)])
def test_another_users_state_is_refused_where_reading_it_can_run_code(
    strategy: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / COMPLETE).write_text(json.dumps({"strategy": strategy, "world_size": 1}))
    compute = Compute(strategy=strategy)
    check_state(tmp_path, compute)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    if taken:
        check_state(tmp_path, compute)
    else:
        with pytest.raises(BadInput, match=f"belongs to another user .*compute.strategy={strategy} can run code"):
            check_state(tmp_path, compute)


def test_one_process_cannot_pass_for_two(prepared: Path, training: TrainingSettings, tmp_path: Path) -> None:
    model, blocks, compute = prepared / "model", prepared / "blocks", Compute(strategy="ddp", processes=2)
    with pytest.raises(BadInput, match="needs 2 processes, got 1"):
        trainer.train(model, blocks, training, tmp_path / "out", work=tmp_path / "work", compute=compute)
