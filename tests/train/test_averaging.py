"""A decay by an average of checkpoints: against a bare loop, after kills, and where it is rejected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common.errors import BadInput
from tests.messages import assert_one_line, assert_wording
from train import averaging, base_model, trainer
from train.data.blocks import Blocks
from train.resume import COMPLETE
from train.settings import BaseModelSettings, Compute, FrozenColumns, LoraSettings, TrainingSettings

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def prepared(corpus_dir: Path, recipe: BaseModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    base_model.prepare(corpus_dir, recipe, folder)
    return folder


@pytest.fixture(scope="module")
def branch(training: TrainingSettings) -> TrainingSettings:
    """12 steps, of which the last 6 are the decay: three parts of two steps."""
    decay = {"decay_tokens": 768, "decay_shape": "average", "averaged_checkpoints": 3}
    return training.replace(tokens=1536, schedule="wsd", weight_decay=0.0, **decay)


def run(prepared: Path, settings: TrainingSettings, out: Path, state: Path | None = None, **options: Any) -> Weights:
    trainer.train(
        prepared / "model",
        prepared / "blocks",
        settings,
        out / "out",
        work=out / "work",
        save_every_tokens=options.pop("save_every_tokens", 384),
        resume_state=state,
        compute=Compute(threads=1),
        calibration_dir=prepared / "blocks",
        **options,
    )
    return load_file(out / "out" / "model" / "model.safetensors")


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("steps", "branch_steps", "checkpoints", "averaged"),
    [
        (12, 6, 3, (8, 10, 12)),
        (12, 6, 1, (12,)),
        (12, 5, 3, (8, 10, 12)),
        (12, 3, 10, (10, 11, 12)),
        (12, 12, 2, (6, 12)),
        (12, 0, 3, ()),
    ],
)
def test_parts_of_the_decay_are_equal_and_have_a_step_each(
    training: TrainingSettings, steps: int, branch_steps: int, checkpoints: int, averaged: tuple[int, ...]
) -> None:
    size = training.batch_tokens
    settings = training.replace(
        tokens=steps * size, decay_tokens=branch_steps * size, averaged_checkpoints=checkpoints, decay_shape="average"
    )
    assert settings.averaged_steps == averaged and settings.decay_steps == 0


def test_a_bare_loop_at_a_constant_rate_gives_the_same_mean(
    prepared: Path, branch: TrainingSettings, tmp_path: Path
) -> None:
    """The oracle: the mean, in float64, of the state dicts after steps 8, 10 and 12."""
    ours = run(prepared, branch, tmp_path)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(prepared / "model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    blocks = Blocks(prepared / "blocks")
    kept = []
    for step in range(12):
        for group in optimizer.param_groups:  # two steps of warm-up from a tenth of the peak
            group["lr"] = 1e-2 * (0.1 + 0.9 * min(1.0, step / 2))
        ids = torch.stack([blocks[index]["input_ids"] for index in range(step * 4, step * 4 + 4)])
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in (8, 10, 12):
            kept.append({name: tensor.double() for name, tensor in model.state_dict().items()})
    last = kept[-1]
    for name, tensor in ours.items():
        mean = sum(each[name] for each in kept) / 3
        torch.testing.assert_close(tensor.double(), mean, atol=2e-5, rtol=1e-4)
    assert any((ours[name] - last[name]).abs().max() > 1e-3 for name in ours)


def test_it_equals_the_mean_of_the_trunks_last_checkpoints(
    prepared: Path, branch: TrainingSettings, tmp_path: Path
) -> None:
    trunk = branch.replace(decay_tokens=0, decay_shape=None, averaged_checkpoints=None)
    size = branch.batch_tokens
    ends = [run(prepared, trunk.replace(tokens=step * size), tmp_path / str(step)) for step in (8, 10, 12)]
    run(prepared, trunk.replace(tokens=6 * size), tmp_path / "6")
    whole = run(prepared, branch, tmp_path / "whole")
    for name, tensor in whole.items():
        mean = sum(end[name].double() for end in ends) / 3
        torch.testing.assert_close(tensor.double(), mean, atol=1e-7, rtol=1e-6)
    from_trunk = run(prepared, branch, tmp_path / "branch", tmp_path / "6" / "out" / "state")
    assert same(from_trunk, whole)
    state = load_file(tmp_path / "branch" / "out" / "state" / "model.safetensors")
    assert all(torch.equal(state[name], ends[-1][name]) for name in whole), "the state has the current weights"


def test_a_killed_training_publishes_the_same_bytes(prepared: Path, branch: TrainingSettings, tmp_path: Path) -> None:
    """Killed after step 9, between two of the averaged steps, when step 8 is in the mean."""
    whole = run(prepared, branch, tmp_path / "whole")
    work, out = tmp_path / "cut" / "work", tmp_path / "cut" / "out"
    script = (
        "import time; from pathlib import Path; from train import trainer;"
        " from train.settings import TrainingSettings;"
        f"trainer.train(Path({str(prepared / 'model')!r}), Path({str(prepared / 'blocks')!r}),"
        f" TrainingSettings(**{branch.model_dump()!r}),"
        f" Path({str(out)!r}), work=Path({str(work)!r}), save_every_tokens=384,"
        " on_log=lambda record: time.sleep(0.3))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    while not (work / "checkpoint-9" / COMPLETE).exists():
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "model").exists() and (work / "checkpoint-9" / averaging.FILE).exists()
    assert same(run(prepared, branch, tmp_path / "cut"), whole)
    published = [folder / "out" / "model" / "model.safetensors" for folder in (tmp_path / "cut", tmp_path / "whole")]
    assert published[0].read_bytes() == published[1].read_bytes()
    for folder in ("model", "state"):  # as after a kill between the last step and the end of publishing
        (tmp_path / "cut" / "out" / folder).rename(tmp_path / folder)
    assert same(run(prepared, branch, tmp_path / "cut"), whole)


def test_weights_that_do_not_change_stay_as_they_are(prepared: Path, branch: TrainingSettings, tmp_path: Path) -> None:
    frozen = branch.replace(frozen_columns=FrozenColumns(fraction=0.25, blocks=3))
    before = load_file(prepared / "model" / "model.safetensors")
    after = run(prepared, frozen, tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    kept = (before[name] == after[name]).all(0)
    assert kept.sum() == before[name].shape[1] // 4


def test_dev_text_is_measured_on_the_current_weights(
    prepared: Path, branch: TrainingSettings, corpus_dir: Path, tmp_path: Path
) -> None:
    from train.dev_text import DevEvaluation

    trunk = branch.replace(decay_tokens=0, decay_shape=None, averaged_checkpoints=None)
    bits = []
    for settings, name in ((trunk, "trunk"), (branch, "branch")):
        run(prepared, settings, tmp_path / name, watched=DevEvaluation(str(corpus_dir), ("xx",), 768))
        lines = [json.loads(line) for line in (tmp_path / name / "out" / "log.jsonl").read_text().splitlines()]
        bits.append([line["dev_bits_per_byte"] for line in lines if "dev_bits_per_byte" in line])
    assert bits[0] == bits[1] and len(bits[0]) == 3


def test_a_state_amid_the_average_of_another_training_is_rejected(
    prepared: Path, branch: TrainingSettings, tmp_path: Path
) -> None:
    trunk = branch.replace(tokens=1152, decay_tokens=0, decay_shape=None, averaged_checkpoints=None)
    run(prepared, trunk, tmp_path / "trunk")
    state = tmp_path / "trunk" / "out" / "state"
    with pytest.raises(BadInput) as error:
        run(prepared, branch, tmp_path / "branch", state)
    assert_one_line(error.value, f"{state}: ")
    assert_wording("averaging: a state without the mean", error.value, STATE=state)


WRONG: dict[str, dict[str, Any]] = {
    "LoRA": {"lora": LoraSettings(rank=2, alpha=4, dropout=0.0, targets="all-linear")},
    "ZeRO": {"strategy": "zero3"},
    "FSDP": {"strategy": "fsdp"},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_averaged_is_rejected(case: str, branch: TrainingSettings) -> None:
    given = dict(WRONG[case])
    compute = Compute(strategy=given.pop("strategy", "none"))
    with pytest.raises(BadInput) as error:
        averaging.check(branch.replace(**given), compute)
    assert_one_line(error.value, "ct.decay_shape=average: ")
    assert_wording(f"averaging: {case}", error.value)
    averaging.check(branch.replace(**given, decay_shape="linear", averaged_checkpoints=None), compute)
