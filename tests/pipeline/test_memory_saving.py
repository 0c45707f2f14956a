"""A base in fewer bits and 8-bit AdamW: keys, plans, what is rejected, and a run in Tamil."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from common.errors import BadInput
from pipeline import cli, inputs, resolve, sweep
from pipeline.config import Config
from pipeline.cost import hardware, memory, table
from pipeline.cost.estimate import state_bytes
from pipeline.cost.shape import model_shape, trained_by
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs, Stage
from tests.messages import assert_one_line
from tests.pipeline.tiny_pair import make_pair, tamil
from train import memory_saving

BOTH = ("train=lora", "train.base_dtype=nf4", "train.optimizer=adamw_8bit")
SEVEN = (
    "model.shape={vocabulary: 32000, hidden: 4096, layers: 32, heads: 32, kv_heads: 32, feed_forward: 11008, "
    "tied: false}"
)


def config_of(*overrides: str) -> Config:
    return sweep.expand(["experiment=test", *overrides], multirun=False).configs[0]


def stages(*overrides: str) -> dict[str, Stage]:
    cell = plan_cell(config_of(*overrides), Inputs(corpus=("text",)))
    return {stage.kind: stage for stage in cell.stages if stage.kind in ("base", "ct", "sft")}


def test_they_are_in_the_keys_of_ct_and_sft_where_they_are_used() -> None:
    plain = stages("train=lora")
    default = stages("train=lora", "train.base_dtype=float32", "train.optimizer=adamw")
    assert all(plain[kind].key == default[kind].key for kind in plain)
    for words in (("train.base_dtype=nf4",), ("train.optimizer=adamw_8bit",), BOTH[1:]):
        changed = stages("train=lora", *words)
        assert changed["base"].key == plain["base"].key, "a base of a recipe is trained by plain AdamW"
        for kind in ("ct", "sft"):
            more = changed[kind].key_content.keys() - plain[kind].key_content.keys()
            assert more == {word.partition("=")[0].removeprefix("train.") for word in words}


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("train.base_dtype=nf4",), "train.base_dtype=nf4: "),
        (("train=lora", "train.base_dtype=bfloat16"), "train.base_dtype=bfloat16: "),
        (("train=lora", "train.base_dtype=int4"), "train.base_dtype="),
        (("train.optimizer=adam",), "train.optimizer="),
        ((*BOTH, "compute=zero3", "compute.processes=2"), "compute.strategy=zero3: "),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    words: tuple[str, ...], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.pipeline_main(["plan", "experiment=test", *words]) == 2
    assert_one_line(capsys.readouterr().err, key)


def test_a_missing_package_is_found_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_saving, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"^train.base_dtype=nf4: needs bitsandbytes"):
        inputs.inputs(config_of(*BOTH), network=False)


def test_full_training_has_no_base_of_its_own() -> None:
    auto = ("train=auto", "train.base_dtype=nf4", "train.optimizer=adamw_8bit")
    fits = resolve.resolved(config_of(*auto, "train.lora_above=100"))
    assert (fits.train.lora, fits.train.base_dtype, fits.train.optimizer) == (None, "float32", "adamw_8bit")
    small = resolve.resolved(config_of(*auto, "train.lora_above=0.0001"))
    assert small.train.lora and small.train.base_dtype == "nf4"


def test_the_plan_counts_fewer_bits() -> None:
    def held(*words: str) -> memory.Memory:
        config = config_of("model=folder", "model.path=hub:a/b@" + "0" * 40, SEVEN, "compute=gpu", *words)
        return memory.memory_of_trainings(config)["ct"]

    shape = table.TABLE_SHAPES["7B (Llama-2-7B)"]
    linear = shape.layers * shape.linear_parameters
    assert linear == shape.parameters - 2 * shape.embedding_parameters - 65 * shape.hidden
    exact, rounded, packed = (held("train=lora", f"train.base_dtype={dtype}") for dtype in memory.BASE_BYTES)
    assert exact.parameters - rounded.parameters == 2 * linear
    assert exact.parameters - packed.parameters == pytest.approx((4 - 0.516) * linear, rel=1e-3)
    assert exact.optimizer == rounded.optimizer and rounded.copies == packed.copies < exact.copies / 10
    full, small = held(), held("train.optimizer=adamw_8bit")
    assert full.optimizer == 8 * shape.parameters
    others = shape.parameters - shape.embedding_parameters
    assert small.optimizer == 8 * shape.embedding_parameters + 2 * (1 + 4 / 256) * others


def test_states_on_the_disk_have_8_bit_moments() -> None:
    plain, small = config_of("train=lora"), config_of(*BOTH)
    count = trained_by(plain).parameters
    assert state_bytes(model_shape(plain), plain) == 12 * count
    assert state_bytes(model_shape(small), small) == pytest.approx(6.03 * count, rel=1e-3)


@pytest.mark.parametrize(
    ("cluster", "advice"),
    [("1xRTX4090", "train.base_dtype=bfloat16"), ("1xT4", "train.base_dtype=nf4"), ("8xA100", None)],
)
def test_the_plan_names_the_base_that_fits(cluster: str, advice: str | None) -> None:
    """LoRA of a 7B model: on one small GPU fewer bits fit; bfloat16 changes no result, so it comes first."""
    gpu = hardware.parse_cluster(cluster)
    precision = "bf16" if gpu.gpu.bf16 else "fp16"
    words = (
        "train=lora",
        "train.lora.rank=8",
        "compute=gpu",
        f"compute.precision={precision}",
        "eval.batch_tokens=128",
    )
    words += ("eval.dtype=bfloat16", "merge=none", "eval.baselines=[ct]")
    config = memory.on_cluster(
        config_of("model=folder", "model.path=hub:a/b@" + "0" * 40, SEVEN, *words, "ct.batch_tokens=1024"), gpu
    )
    assert bool(memory.excess_memory(config, gpu)) == bool(advice)
    if advice:
        assert advice in memory.nearest_fit(config, gpu)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_run_in_tamil(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CT on a 4-bit base with 8-bit AdamW."""
    base, _ = make_pair(tmp_path)
    given = ["run", "experiment=test", "language=mine", "language.code=tam", f"corpus.path={tamil(tmp_path)}"]
    given += ["model=folder", f"model.path={base}", f"store={tmp_path / 'store'}", f"outputs={tmp_path / 'out'}"]
    given += [*BOTH, "train.lora.rank=16", "sft.template=none", "eval.baselines=[base,ct]", "merge=none"]
    given += ["tracking=none", "ct.dev_every_tokens=2048", "eval.families=[]"]
    assert cli.pipeline_main(given) == 0
    capsys.readouterr()
    (ct,) = (tmp_path / "store" / "ct").iterdir()
    record = json.loads((ct / "stage.json").read_text())
    assert record["settings"]["base_dtype"] == "nf4" and record["settings"]["optimizer"] == "adamw_8bit"
    before, after = (load_file(folder / "model.safetensors") for folder in (base, ct / "model"))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if "_proj" in name}
    assert {tensor.dtype for tensor in after.values()} == {before[next(iter(before))].dtype}
    measured = [json.loads(line) for line in (ct / "log.jsonl").read_text().splitlines()]
    bits = [line["dev_bits_per_byte"]["tam"] for line in measured if "dev_bits_per_byte" in line]
    assert bits[-1] < bits[0]
    assert cli.pipeline_main(given) == 0 and "nothing to run" in capsys.readouterr().out
