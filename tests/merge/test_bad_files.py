"""Files that are not what their names say end in one line that names them; nothing outside of a folder is followed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge.cli import main
from tests.merge.conftest import config, recipe, save, weights
from tests.messages import assert_wording

SHARD = "model-00001-of-00001.safetensors"


def line(capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tmp_path: Path, *options: str) -> str:
    """What the command line says of a merge, without its end; it leaves nothing."""
    capsys.readouterr()
    recipe(folders, "ties").save(tmp_path / "merge.yml")
    before = sorted(tmp_path.iterdir())
    assert main([str(tmp_path / "merge.yml"), str(tmp_path / "out"), *options]) == 2
    assert sorted(tmp_path.iterdir()) == before
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("merge: ")
    return error.removeprefix("merge: ").strip()


def with_header(file: Path, header: Any, data: int = 4) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * data)


def entry(shape: Any = (1,), offsets: Any = (0, 4), dtype: Any = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a":' + b"[" * 100_000, "recursion limit"),
        (entry(offsets=[0.0, 4.0]), "a.data_offsets.0: "),
        (entry(offsets=["0", "4"]), "a.data_offsets.0"),
        (entry(offsets=[4]), "a.data_offsets"),
        (entry(offsets=[0, 2, 4]), "a.data_offsets"),
        (entry(shape=[float("inf")]), "a.shape.0"),
        (entry(shape=[-1], offsets=[0, 4]), "a.shape.0: "),
        (entry(shape=[-1, -1]), "a.shape.0"),
        (entry(offsets=[-4, 0]), "a.data_offsets.0"),
        (entry() | {"b": entry()["a"]}, "tensor b must begin at byte 4, got 0"),
        (entry(offsets=[4, 8]), "tensor a must begin at byte 0, got 4"),
        (entry(shape=[0], offsets=[0, 0]), "4 bytes belong to no tensor"),
        (entry(dtype=3), "a.dtype"),
        (entry(dtype="F4"), "dtype F4"),
        ({"a": None}, "header: a: "),
        ([], "its header: "),
        ({"__metadata__": {"format": 1}} | entry(), "__metadata__"),
    ],
)
def test_headers(
    header: Any, words: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_header(folders["sft"] / "model.safetensors", header)
    said = line(capsys, folders, tmp_path)
    assert words in said and said.startswith(str(folders["sft"] / "model.safetensors"))
    assert_wording(f"header: {str(header)[:60]}", said, TMP=tmp_path)


def test_a_header_is_read_up_to_100_mb(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    file = folders["sft"] / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((3_000_000_000).to_bytes(8, "little"))
        stream.truncate(3_000_000_100)  # sparse
    assert "100000000 bytes, got 3000000000" in line(capsys, folders, tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"model.norm.weight": 3}, "weight_map.model.norm.weight: "),
        ({"model.norm.weight": None}, "weight_map.model.norm.weight"),
        ({"model.norm.weight": [SHARD]}, "weight_map.model.norm.weight"),
        (None, "weight_map: "),
        ({}, "weight_map"),
        ({"a": "../ct/model.safetensors"}, "got '../ct/model.safetensors'"),
        ({"a": "/etc/passwd"}, "got '/etc/passwd'"),
        ({"a": ""}, "got ''"),
        ({"a": "config.json"}, "got 'config.json'"),
        ({"a": SHARD}, "no tensor a"),
    ],
)
def test_indices(weight_map: Any, words: str, folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    (folders["sft"] / "model.safetensors").rename(folders["sft"] / SHARD)
    index = folders["sft"] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    said = line(capsys, folders, tmp_path)
    assert words in said
    assert_wording(f"index: {weight_map}", said, TMP=tmp_path)
    index.write_text("{'weight_map'")
    assert f"{index}: not JSON" in line(capsys, folders, tmp_path)


@pytest.mark.parametrize("text", ["[" * 5000, "[1]", "3", "null", "", "\xff", '{"vocab_size": '])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_nested_and_foreign_json(name: str, text: str, folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    (folders["ct"] / name).write_text(text, encoding="latin-1")
    assert str(folders["ct"] / name) in line(capsys, folders, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {"a": torch.ones(1)}}, "'state_dict', got dict"),
        ({"a": 3}, "'a', got int"),
        ([torch.ones(1)], "got list"),
        ({1: torch.ones(1)}, "1, got Tensor"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, "got strided, complex64"),
        ({"a": torch.ones(1).to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
        ({"a": torch.ones(2, 2).to_sparse()}, "sparse_coo"),
        ({"a": torch.ones(2, device="meta")}, "without values"),
        ({"a": torch.ones(1).expand(10**9)}, "tensor a [1000000000]"),
        (b"no pickle", "cannot be read"),
    ],
)
def test_pickled(content: Any, words: str, folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    (folders["sft"] / "model.safetensors").unlink()
    file = folders["sft"] / "pytorch_model.bin"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    said = line(capsys, folders, tmp_path)
    assert words in said and str(file) in said
    if not isinstance(content, bytes):  # else the line has a text of torch
        assert_wording(f"pickle: {words}", said, TMP=tmp_path)


def test_a_tensor_in_two_files(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    whole = folders["sft"] / "model.safetensors"
    other = folders["sft"] / "model-2.safetensors"
    other.write_bytes(whole.read_bytes())
    whole.rename(folders["sft"] / SHARD)
    weight_map = {"model.norm.weight": SHARD, "model.embed_tokens.weight": other.name}
    (folders["sft"] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "is also in" in line(capsys, folders, tmp_path)


def test_sidecars_are_not_followed_out_of_their_folder(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"eos_token_id": 2}')
    (folders["base"] / "generation_config.json").symlink_to(secret)
    assert f"a link to {secret}" in line(capsys, folders, tmp_path)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    snapshot = save(tmp_path / "models--me--base" / "snapshots" / ("1" * 40), weights(0))
    blobs = tmp_path / "models--me--base" / "blobs"
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    out = merge.write(recipe({"ct": snapshot}, "linear", {"ct": {}}), tmp_path / "out")
    assert (out / "tokenizer.json").is_file() and not (out / "tokenizer.json").is_symlink()


def test_a_folder_that_may_not_be_read(folders: dict[str, Path], tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    if os.geteuid() == 0:  # who may read everything: the system call says no in its place
        real = os.open

        def forbidden(path: Any, *rest: Any, **more: Any) -> int:
            if str(path) == str(folders["sft"] / "model.safetensors"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **more)

        monkeypatch.setattr(os, "open", forbidden)
    else:
        (folders["sft"] / "model.safetensors").chmod(0)
    assert f"{folders['sft'] / 'model.safetensors'}: permission denied" in line(capsys, folders, tmp_path)


def test_a_config_without_a_word_on_sizes(folders: dict[str, Path]) -> None:
    held = load_file(folders["sft"] / "model.safetensors")
    save(folders["sft"], held)
    (folders["sft"] / "config.json").write_text(json.dumps({"model_type": config()["model_type"]}))
    merge.check(recipe(folders, "ties"))
