"""What trainings recorded of their speed and memory: in the plan of the next sweep, and in the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import sweep
from pipeline.cli import pipeline_main as main
from pipeline.config import Config
from pipeline.cost import hardware
from pipeline.cost.shape import model_shape, training_flops
from pipeline.report.stages import StageRecords
from pipeline.store import Store
from tests.pipeline.report.synthetic import GOOD, Run

H100 = "NVIDIA H100 80GB HBM3"
MEASURED = {
    "device": H100,
    "devices": 4,
    "tokens_per_second_per_device": 50_000.0,
    "mfu": 0.31,
    "peak_memory_bytes": 7 * 2**30,
}
CONFIG_JSON = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
}


def record(kind: str = "ct", slug: str = "nya-150k-s0", **more: Any) -> dict[str, Any]:
    """A stage.json as trainings leave it."""
    settings = {"tokens": 150_000, "block_size": 512, "precision": "bf16", **more.pop("settings", {})}
    about = {"kind": kind, "slug": slug, "finished": "2026-11-30", "seconds": 9.0, "amount": 0.15, "files": {}}
    return {**about, "settings": settings, "launched": {"strategy": "none"}, "performance": MEASURED, **more}


def publish(root: Path, described: dict[str, Any], **config: Any) -> None:
    """An entry of a store with a record and its model's config.json."""
    folder = root / described["kind"] / f"{described['slug']}-{len(list(root.glob('*/*'))):012}"
    (folder / "model").mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps(described))
    (folder / "model" / "config.json").write_text(json.dumps({**CONFIG_JSON, **config}))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    given = ("experiment=smollm2", "compute.precision=bf16", f"store={tmp_path}")
    return sweep.expand(given, multirun=False).configs[0]


def alike(config: Config, gpu: str = "H100") -> dict[str, hardware.Speed]:
    return hardware.comparable_speeds(Store(Path(config.store)), config, hardware.GPUS[gpu], ("base", "ct", "sft"))


def test_a_training_of_the_same_shape_precision_and_gpu_is_planned_by(tmp_path: Path, config: Config) -> None:
    publish(tmp_path, record(slug="same"))
    others: dict[str, dict[str, Any]] = {
        "fp32": {"settings": {"precision": "fp32"}},
        "low": {"settings": {"lora": {"rank": 8}}},
        "a100": {"performance": {**MEASURED, "device": "NVIDIA A100-SXM4-80GB"}},
        "older": {"performance": None},
    }
    for slug, more in others.items():
        publish(tmp_path, record(slug=slug, **{**more, "settings": {"tokens": 10**9, **more.get("settings", {})}}))
    publish(tmp_path, record(slug="larger", settings={"tokens": 10**9}), num_hidden_layers=31)
    found = alike(config)
    assert {kind: each.stage for kind, each in found.items()} == {"ct": "ct same"}
    assert found["ct"].rate == 50_000 * training_flops(model_shape(config), 512)
    assert {each.stage for each in alike(config, "A100").values()} == {"ct a100"}


def test_the_config_s_strategy_comes_first_and_then_the_longest(tmp_path: Path, config: Config) -> None:
    publish(tmp_path, record(slug="short"))
    publish(tmp_path, record(slug="long", settings={"tokens": 900_000}, resumed_tokens=100_000))
    publish(tmp_path, record(slug="resumed", settings={"tokens": 10**6}, resumed_tokens=900_000))
    publish(tmp_path, record(slug="sharded", settings={"tokens": 10**9}, launched={"strategy": "fsdp"}))
    assert alike(config)["ct"].stage == "ct long"


def plan(config: Config, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    given = ["plan", "experiment=smollm2", "compute.precision=bf16", f"store={config.store}", "cluster=1xH100", *more]
    assert main(given) == 0
    return capsys.readouterr().out


def seconds(printed: str, kind: str) -> str:
    return next(line for line in printed.splitlines() if line.startswith(f"  {kind} "))


def test_the_plan_says_what_it_was_measured_on(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before = plan(config, capsys)
    assert "utilisation in training 0.4 assumed" in before
    publish(tmp_path, record(performance={**MEASURED, "tokens_per_second_per_device": 50.0}))
    after = plan(config, capsys)
    line = f"utilisation in training 0.31 measured (50 tokens/s a GPU: ct nya-150k-s0 on 4 x {H100}), in scoring"
    assert line in after
    assert f", measured 7.0 GiB (ct nya-150k-s0 on 4 x {H100}, none)" in after
    assert seconds(after, "ct") != seconds(before, "ct")
    assert seconds(after, "sft") != seconds(before, "sft"), "no SFT has been measured: CT's FLOP/s are the best guess"
    assert seconds(plan(config, capsys, "mfu=0.4"), "ct") == seconds(before, "ct"), "what is given comes first"


def test_without_an_mfu_the_peak_of_the_gpu_gives_it(tmp_path: Path, config: Config) -> None:
    publish(tmp_path, record(performance={**MEASURED, "mfu": None}))
    gpu, found = hardware.GPUS["H100"], alike(config)["ct"]
    assert hardware.measured_mfu(found, gpu, "bf16") == pytest.approx(found.rate / 989e12)


@pytest.mark.parametrize(
    "broken",
    [None, [], {}, {**MEASURED, "devices": "many"}, {**MEASURED, "devices": 0}, {**MEASURED, "mfu": "high"}],
)
def test_a_record_without_such_a_performance_is_passed_over(broken: object) -> None:
    assert hardware.recorded_speed(record(performance=broken)) is None
    without = record()
    del without["performance"]
    assert hardware.recorded_speeds([without, record()]) == [hardware.recorded_speed(record())]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (H100, "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("Tesla V100-SXM2-16GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GH200 480GB", None),
        ("cpu", None),
    ],
)
def test_gpus_by_the_names_that_pytorch_gives(device: str, name: str | None) -> None:
    found = hardware.gpu_of_pytorch(device)
    assert (found.name if found else None) == name


def test_the_report_lists_speed_and_memory_where_they_were_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", GOOD, {})
    plain = run.render(tmp_path / "plain").page.read_text()
    assert "tokens/s per device" not in plain
    given = {**record(slug="measured"), "key": "0" * 12, "commit": "c0ffee", "cells": 1}
    run.stages.append({**given, "versions": {"torch": "2.13.0"}})
    paths = run.render(tmp_path / "out")
    page = paths.page.read_text()
    for cell in ("ct measured", H100, "<td>50,000</td>", "<td>31.0%</td>", "<td>7.0</td>"):
        assert cell in page
    rows = list(csv.DictReader((tmp_path / "out" / "stages.csv").open()))
    assert rows[-1]["tokens_per_second_per_device"] == "50000.0"
    assert rows[-1]["peak_memory_bytes"] == str(7 * 2**30)
    assert {row["mfu"] for row in rows[:-1]} == {""}
    empty = record(performance={**MEASURED, "mfu": None, "peak_memory_bytes": None})
    assert StageRecords([empty]).performances[0][-2:] == ("", "")
