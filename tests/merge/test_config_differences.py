"""Settings in which the parents' configs differ: said on the terminal, in a plan and in the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merge.cli import main
from tests.merge.conftest import recipe


def told(folders: dict[str, Path], out: Path, capsys: pytest.CaptureFixture[str], **settings: Any) -> list[str]:
    """What the terminal says, of which the card says as much, by shorter names."""
    recipe(folders, "ties", **settings).save(out.parent / "merge.yml")
    capsys.readouterr()
    assert main([str(out.parent / "merge.yml"), str(out), "--quiet"]) == 0
    lines = capsys.readouterr().err.splitlines()
    card = (out / "README.md").read_text()
    said = [line.removeprefix("merge: note: ") for line in lines]
    for line in said:
        short = line
        for folder in folders.values():
            short = short.replace(str(folder), folder.name)
        assert f"- {short}" in card and str(folders["base"]) not in card
    assert main([str(out.parent / "merge.yml"), "--plan"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")] == [
        f"note      {line}" for line in said
    ]
    return said


def change(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize(
    ("base", "other", "line"),
    [
        (
            {"rope_theta": 1e4},
            {"rope_theta": 1e6},
            "rope_theta: 10000.0 in the result, as in {base}; 1000000.0 in {sft}",
        ),
        ({}, {"rope_theta": 1e6}, "rope_theta: 10000.0 in the result, as in {base}; 1000000.0 in {sft}"),
        (
            {"rope_theta": 1e4},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "rope_theta: 10000.0 in the result, as in {base}; 1000000.0 in {sft}",
        ),
        (
            {"rope_scaling": None},
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            'rope_scaling: null in the result, as in {base}; {{"factor": 4.0, "rope_type": "yarn"}} in {sft}',
        ),
        (
            {},
            {"max_position_embeddings": 131072},
            "max_position_embeddings: 64 in the result, as in {base}; 131072 in {sft}",
        ),
        (
            {"hidden_act": "silu"},
            {"hidden_act": "gelu"},
            'hidden_act: "silu" in the result, as in {base}; "gelu" in {sft}',
        ),
        ({}, {"rms_norm_eps": 1e-5}, "rms_norm_eps: 1e-06 in the result, as in {base}; 1e-05 in {sft}"),
        ({}, {"sliding_window": 512}, "sliding_window: null in the result, as in {base}; 512 in {sft}"),
        (
            {"text_config": {"rope_theta": 1e4}},
            {"text_config": {"rope_theta": 1e6}},
            "text_config.rope_theta: 10000.0 in the result, as in {base}; 1000000.0 in {sft}",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            {},
            "quantization_config of {base}: left out, as its weights are not quantized",
        ),
    ],
)
def test_what_differs_is_said(
    base: Any, other: Any, line: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folders["base"], **base)
    change(folders["ct"], **base)
    change(folders["sft"], **other)
    assert told(folders, tmp_path / "out", capsys) == [line.format(**folders)]


@pytest.mark.parametrize(
    ("base", "other"),
    [
        ({}, {}),
        ({"dtype": "float32", "use_cache": True}, {"torch_dtype": "float32", "use_cache": False}),
        ({"_name_or_path": "a", "transformers_version": "4.1"}, {"_name_or_path": "b", "transformers_version": "5.0"}),
        ({"rope_theta": 10000}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({"eos_token_id": 1, "attention_dropout": 0.0}, {"eos_token_id": [1, 2], "attention_dropout": 0.1}),
        ({"new_setting": 1}, {}),
    ],
)
def test_what_changes_no_answer_is_not(
    base: Any, other: Any, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folders["base"], **base)
    change(folders["sft"], **other)
    change(folders["ct"], **base)
    assert told(folders, tmp_path / "out", capsys) == []
