"""`python -m eval` alone: no pipeline, no Hydra."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval import __main__ as command_line
from tests.eval.conftest import make_items, write_jsonl

OPTIONS = """
--items TMP/items --out /proc/x                  | out: /proc/x: .*; give a folder that can be written
--items TMP/items --out TMP/file                 | out: .*file: File exists; give a folder
--items TMP/items --out TMP/file/below           | out: .*file/below: Not a directory; give a folder
--items TMP/items --out LONG                     | out: x+: File name too long; give a folder
--items TMP/items --device nonsense              | device: 'nonsense': .*; say cpu
--items TMP/items --device cuda:99               | device: 'cuda:99': .*; say cpu
--items TMP/items --device meta                  | device: 'meta': .*; say cpu
--items TMP/items --device=                      | device: '': .*; say cpu
--items TMP/items --limit 0                      | limit: 0 must be 1 or more
--items TMP/items --batch-tokens 0               | batch_tokens: 0 must be 1 or more
--items TMP/items --batch-tokens -7              | batch_tokens: -7 must be 1 or more
--items TMP/items --trained-length 1             | trained_length: 1 must be 2 or more
--text TMP/text --max-chars 0                    | max_chars: 0 must be 1 or more
--text TMP/text --max-chars -5                   | max_chars: -5 must be 1 or more
--items LONG                                     | items: x+ is not a folder
--text LONG                                      | text: x+ is not a folder
--include-path LONG                              | tasks: x+ is not a folder
--items TMP/folder                               | .*next_nya.test.jsonl: Is a directory
--items TMP/deep                                 | .*next_nya.test.jsonl line 1: not JSON .recursion limit
--items TMP/digits                               | .*next_nya.test.jsonl line 1: not JSON .number out of range
--items TMP/half_letter                          | .*next_nya.test.jsonl line 1: not JSON .*hex escape
--items TMP/list                                 | .*next_nya.test.jsonl line 1: must be an object
--text TMP/half_letter_of_text                   | .*nya.test.jsonl line 1: not JSON .*hex escape
"""
ROWS = [tuple(part.strip() for part in line.split(" | ")) for line in OPTIONS.strip().splitlines()]
WRONG_CONFIGS: dict[str, dict[str, Any]] = {
    "list": {"model_type": ["llama"]},
    "heads": {"num_attention_heads": 0},
    "quantized": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "dtype": {"dtype": "float99"},
    "vocabulary": {"vocab_size": "300"},
    "reads nothing": {"max_position_embeddings": -1},
}
WRONG_FILES = {
    "nested": ("config.json", b"[" * 200_000),
    "cut": ("model.safetensors", b"\xff" * 8 + b"{"),
    "empty": ("model.safetensors", b""),
    "index": ("model.safetensors.index.json", b'{"weight_map": 5}'),
    "null": ("tokenizer.json", b"null"),
    "tokenizer": ("tokenizer_config.json", b"["),
}


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
    given = ("--items", items, "--text", text, "--limit", 4, "--excerpt", 60)  # the old name of --max-chars
    assert run(monkeypatch, tmp_path / "model", *given, "--out", tmp_path / "out") == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows if row["primary"]] == [
        "about_nya",
        "next_en",
        "next_nya",
        "bits_per_byte_nya",
        "mean_nya",
        "mean_en",
    ]
    printed, said = capsys.readouterr()
    assert "--excerpt: the name is now --max-chars." in said
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


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, model: Any, tokenizer: Any) -> Path:
    """A model, items and text that work, and files that are each wrong in one way."""
    folder = tmp_path_factory.mktemp("given")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    item = make_items("next", "nya", 1, 0)[0]
    write_jsonl(folder / "items" / "next_nya.test.jsonl", [item])
    write_jsonl(folder / "text" / "nya.test.jsonl", [{"id": "a", "text": "mawu ena"}])
    write_jsonl(folder / "half_letter" / "next_nya.test.jsonl", [{**item, "prompt": "\ud800"}])
    write_jsonl(folder / "half_letter_of_text" / "nya.test.jsonl", [{"id": "a", "text": "\ud800"}])
    for name, line in {"deep": "[" * 100_000, "digits": '{"answer": ' + "9" * 5000 + "}", "list": "[1]"}.items():
        (folder / name).mkdir()
        (folder / name / "next_nya.test.jsonl").write_text(line)
    (folder / "folder" / "next_nya.test.jsonl").mkdir(parents=True)
    (folder / "file").write_text("a file")
    return folder


@pytest.mark.parametrize(("options", "line"), ROWS, ids=[options for options, _ in ROWS])
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    options: str,
    line: str,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    words = options.replace("TMP", str(given)).replace("LONG", "x" * 300).split()
    assert run(monkeypatch, given / "model", "--out", tmp_path / "out" / "below", *words) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and re.match(line, said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [*WRONG_CONFIGS, *WRONG_FILES])
def test_a_model_that_cannot_be_loaded_is_named_in_one_line(
    wrong: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(given / "model", folder)
    if wrong in WRONG_CONFIGS:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **WRONG_CONFIGS[wrong]}))
    else:
        name, content = WRONG_FILES[wrong]
        if name.endswith(".index.json"):
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)
    assert run(monkeypatch, folder, "--items", given / "items", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    expected = "model: reads -1 tokens" if wrong == "reads nothing" else f"model: {folder} cannot be loaded: "
    assert len(said.splitlines()) == 1 and said.startswith(expected), said
    assert not (tmp_path / "out").exists()


def test_help_and_import_load_nothing_heavy() -> None:
    script = "import sys, eval, eval.harness, eval.task_set; from eval.__main__ import main; main(['--help']);"
    script += "assert not {'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--items" in done.stdout


def test_text_is_read_within_the_trained_length(
    folders: tuple[Path, Path], model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    values = []
    for more in ((), ("--trained-length", "0.064k"), ("--trained-length", 65), ("--trained-length", 9)):
        assert run(monkeypatch, tmp_path / "model", "--text", folders[1], *more, "--out", tmp_path / "out") == 0
        values.append(json.loads((tmp_path / "out" / "scores.jsonl").read_text())["value"])
    assert values[0] == values[2] and len(set(values)) == 3  # the model reads 64 tokens, and predicts from all of them
    assert run(monkeypatch, tmp_path / "model", "--text", folders[1], "--trained-length", 1, "--out", tmp_path) == 2
