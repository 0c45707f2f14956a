"""`python -m eval` alone: no pipeline, no Hydra."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval import __main__ as command_line
from tests.eval.conftest import write_jsonl


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(sys, "argv", ["eval", *map(str, arguments)])
    return command_line.main()


def test_it_scores_a_folder(
    folders: tuple[Path, Path],
    model: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    items, text = folders
    assert (
        run(monkeypatch, tmp_path / "model", "--items", items, "--text", text, "--limit", 4, "--out", tmp_path / "out")
        == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows if row["primary"]] == [
        "about_nya",
        "next_en",
        "next_nya",
        "bits_per_byte_nya",
        "mean_nya",
        "mean_en",
    ]
    printed = capsys.readouterr().out
    assert all(f"{row['value']:.4f}" in printed for row in rows)


def test_a_refusal_is_one_line_and_exit_code_2(
    tmp_path: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert run(monkeypatch, tmp_path, "--items", tmp_path, "--out", tmp_path / "out") == 2
    write_jsonl(tmp_path / "items" / "next_nya.test.jsonl", [{"id": "1"}])
    assert run(monkeypatch, tmp_path / "model", "--items", tmp_path / "items", "--out", tmp_path / "out") == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "no config.json" in first
    assert "next_nya.test.jsonl line 1: 'prompt'" in second
    assert not (tmp_path / "out").exists()


def test_help_and_import_load_nothing_heavy() -> None:
    script = "import sys, eval, eval.harness, eval.task_set; from eval.__main__ import parser;"
    script += "print(parser('eval').format_help());"
    script += "assert not {'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--items" in done.stdout


def test_text_is_read_within_the_trained_length(
    folders: tuple[Path, Path], model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    values = []
    for more in ((), ("--trained-length", 64), ("--trained-length", 65), ("--trained-length", 9)):
        assert run(monkeypatch, tmp_path / "model", "--text", folders[1], *more, "--out", tmp_path / "out") == 0
        values.append(json.loads((tmp_path / "out" / "scores.jsonl").read_text())["value"])
    assert values[0] == values[2] and len(set(values)) == 3  # the model reads 64 tokens, and predicts from all of them
    assert run(monkeypatch, tmp_path / "model", "--text", folders[1], "--trained-length", 1, "--out", tmp_path) == 2
