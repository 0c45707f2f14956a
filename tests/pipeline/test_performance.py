"""What the record, the console and wandb say of a training's speed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from transformers import Gemma3Config, Gemma3TextConfig

from pipeline import sweep, tracking
from pipeline.cost import hardware
from pipeline.cost.hardware import training_mfu
from pipeline.cost.shape import from_config_json, training_flops
from pipeline.execute import Executor, Job
from pipeline.journal import Journal
from pipeline.run import launch
from pipeline.store import Store
from tests.pipeline import toy
from tests.pipeline.toy_stage import toy_stage
from train.performance import Performance
from train.settings import LoraSettings, TrainingSettings

CONFIG = Path(__file__).parents[2] / "models" / "tiny-base" / "config.json"
SETTINGS = TrainingSettings(
    tokens=2048,
    schedule_tokens=2048,
    batch_tokens=128,
    block_size=32,
    learning_rate=1e-2,
    min_lr_ratio=0.1,
    warmup_ratio=0.1,
    weight_decay=0.1,
    seed=0,
)
MEASURED = Performance("NVIDIA H100 80GB HBM3", 8, 1e7, None, 3 * 2**30)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_mfu_is_the_share_of_the_peak_in_this_precision(precision: str) -> None:
    of_a_token = training_flops(from_config_json(CONFIG), 32)
    peak = 67e12 if precision == "fp32" else 989e12
    assert training_mfu(MEASURED, CONFIG, SETTINGS, precision) == pytest.approx(1e7 * of_a_token / peak, abs=1e-4)
    lora = SETTINGS.replace(lora=LoraSettings(rank=4, alpha=8, dropout=0.0, targets="all-linear"))
    assert training_mfu(MEASURED, CONFIG, lora, precision) == pytest.approx(1e7 * of_a_token * 2 / 3 / peak, abs=1e-4)


@pytest.mark.parametrize(
    "change", [{"num_local_experts": 8}, {"text_config": {"num_experts": 8}}, {"hidden_size": None}]
)
def test_mfu_is_null_for_models_whose_flops_are_not_known(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(json.loads(CONFIG.read_text()) | change))
    assert training_mfu(MEASURED, tmp_path / "config.json", SETTINGS, "bf16") is None


def test_the_shape_of_a_model_with_a_vision_tower_is_that_of_its_text(tmp_path: Path) -> None:
    text = Gemma3TextConfig(vocab_size=300, hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48)  # fmt: skip
    Gemma3Config(text_config=text).save_pretrained(tmp_path)
    shape = from_config_json(tmp_path / "config.json")
    assert (shape.vocabulary, shape.hidden, shape.layers, shape.feed_forward) == (300, 16, 3, 48)
    assert (shape.heads, shape.kv_heads, shape.tied) == (4, 2, True)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("NVIDIA H100 PCIe", None),  # slower than the form whose peak is known
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("AMD EPYC 7763 64-Core Processor", None),
    ],
)
def test_gpus_by_the_name_of_the_driver(name: str, gpu: str | None) -> None:
    found = hardware.gpu_of_driver(name)
    assert (found.name if found else None) == gpu
    assert set(hardware.DRIVER_NAMES) == set(hardware.GPUS)


def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: Any) -> tuple[dict[str, Any], str]:
    """The record of a stage `sft` whose training is a stub that measured MEASURED, and its last line."""

    def training(job: Job, *_: Any) -> dict[str, Any]:
        (job.out / "model").mkdir()
        (job.out / "model" / "config.json").write_text(CONFIG.read_text())
        return {"strategy": "none", "performance": asdict(MEASURED)}

    def maker(job: Job) -> None:
        launch.train(job, tmp_path, tmp_path, SETTINGS.replace(precision="bf16"))

    monkeypatch.setattr(launch, "_train", training)
    options = {"compute": {"device": "cuda"}, "save_every_tokens": 10}
    stage = toy_stage("sft", "test", {"tokens": 10}, options=options)
    store, journal = Store(tmp_path / "store"), Journal(tmp_path / "journal.jsonl")
    view = toy.view(store, [stage], journal)
    Executor(store, [stage], journal, maker=lambda kind: maker, track=track).compute([stage], stop_at_failure=True)
    entry = store.find(stage)
    assert entry
    return dict(entry.record), view.new_lines()[-1]


def test_a_training_leaves_its_performance_in_record_console_and_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summaries: list[dict[str, Any]] = []

    class Run:
        def __init__(self) -> None:
            self.summary = self

        def update(self, values: dict[str, Any]) -> None:
            summaries.append(values)

        def finish(self, exit_code: int = 0) -> None:
            pass

    monkeypatch.setattr(tracking, "start", lambda *_: Run())
    config = sweep.expand(("experiment=test", "tracking.wandb=offline"), multirun=False).configs[0]
    record, line = trained(tmp_path, monkeypatch, tracking.tracker(config, tmp_path / "wandb"))
    reached = training_mfu(MEASURED, CONFIG, SETTINGS, "bf16")
    assert record["performance"] == asdict(replace(MEASURED, mfu=reached)) and record["launched"] == {
        "strategy": "none"
    }
    assert summaries == [{f"performance/{name}": value for name, value in record["performance"].items()}]
    assert reached and f"10,000,000 tokens/s on each of 8 devices, MFU {reached:.1%}, peak memory 3.0 GiB" in line


@pytest.mark.parametrize(
    ("wanted", "metrics"),
    [
        (("tracking.wandb=online", "compute=gpu"), True),
        (("tracking.wandb=online",), False),
        (("tracking.wandb=offline", "compute=gpu"), False),
    ],
)
def test_wandb_samples_the_system_for_online_runs_on_gpus(
    wanted: tuple[str, ...], metrics: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **options: begun.append(options))
    config = sweep.expand(("experiment=test", *wanted), multirun=False).configs[0]
    tracking.start(config, tmp_path, "a stage", "ct", {})
    assert begun[0]["settings"].x_disable_stats is not metrics
