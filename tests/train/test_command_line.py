"""`python -m train JOB.json` where the file cannot be a job; that good ones train is test_distributed.py's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from common.validation import read_json
from train import __main__ as entry
from train.memory_saving import PACKAGE, leave_package_out
from train.settings import LoraSettings, TrainingSettings

SETTINGS = TrainingSettings(
    tokens=2,
    schedule_tokens=2,
    batch_tokens=2,
    block_size=2,
    learning_rate=1e-3,
    min_lr_ratio=0.1,
    warmup_ratio=0.01,
    weight_decay=0.0,
    seed=0,
    lora=LoraSettings(rank=8, alpha=16.0, dropout=0.0, targets=("q_proj",)),
)
JOB: dict[str, Any] = {"model": "m", "blocks": "b", "out": "o", "work": "w", "settings": SETTINGS.model_dump()}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no such file; expected JSON of model, blocks, settings, out, work"),
        ("{", "not JSON"),
        ("[]", "must be"),
        (json.dumps({**JOB, "model": 3}), "model: must be a valid string"),
        (
            json.dumps({**JOB, "settings": {**SETTINGS.model_dump(), "tokens": "many"}}),
            "settings.tokens: must be a number of tokens",
        ),
        (json.dumps({**JOB, "settings": {}}), "settings.tokens: field required"),
        (json.dumps({**JOB, "compute": {"processes": "two"}}), "compute.processes: must be a valid integer"),
    ],
)
def test_what_is_no_job_is_refused_in_a_line(
    content: str | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert entry.main([str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(file) in said and line in said
    assert (tmp_path / entry.RESULT_FILE).is_file() == file.is_file()


def test_help_and_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--help"]) == 0
    assert "JOB is a JSON file of model, blocks, settings" in capsys.readouterr().out
    for words in ([], ["--jbo"], ["a.json", "b.json"]):
        assert entry.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("python -m train: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "config", "is_left_out"),
    [
        ({}, "{}", True),
        ({"base_dtype": "bfloat16"}, "{}", True),
        ({"base_dtype": "nf4"}, "{}", False),
        ({"optimizer": "adamw_8bit"}, "{}", False),
        ({}, '{"quantization_config": {}}', False),
    ],
)
def test_a_training_without_quantization_does_not_import_bitsandbytes(
    changes: dict[str, Any], config: str, is_left_out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "config.json").write_text(config)
    with monkeypatch.context() as modules:
        modules.setattr(sys, "modules", dict(sys.modules))
        leave_package_out(SETTINGS.replace(**changes), tmp_path)
        assert (PACKAGE in sys.modules) == is_left_out


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps(JOB), encoding="utf-8")
    assert read_json(file, entry.Job)["settings"] == SETTINGS
