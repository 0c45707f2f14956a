"""Several merges in one file: made in order, the last one published, and nothing left of the others."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import merge
from merge.chained import write_stages
from merge.cli import main
from tests.merge.conftest import recipe


def documents(folders: dict[str, Path]) -> list[dict[str, Any]]:
    """The last one first: a mergekit config over a recipe of ours, which takes a third."""
    last = {
        "merge_method": "slerp", "base_model": str(folders["base"]), "models": [{"model": "mitte"}],
        "parameters": {"t": 0.3}, "dtype": "float32",
    }  # fmt: skip
    middle = {"name": "mitte", "method": "linear", "models": {"a": {"path": "first"}, "b": {"path": "sft"}}}
    first = recipe(folders, "ties").to_dict() | {"name": "first"}
    return [last, middle, first]


def by_hand(folders: dict[str, Path], root: Path) -> dict[str, torch.Tensor]:
    first = merge.write(recipe(folders, "ties"), root / "hand-1")
    middle = merge.write(recipe({"a": first, "b": folders["sft"]}, "linear", {"a": {}, "b": {}}), root / "hand-2")
    out = merge.write(recipe({**folders, "a": middle}, "slerp", {"a": {}}, t=0.3, exact=False), root / "hand-3")
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("listed", [False, True])
def test_merges_are_made_in_order(listed: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    path, found = tmp_path / "merge.yml", documents(folders)
    path.write_text(yaml.safe_dump(found) if listed else yaml.safe_dump_all(found))
    before = {entry.name for entry in tmp_path.iterdir()}
    assert main([str(path), str(tmp_path / "out"), "--quiet"]) == 0
    assert {entry.name for entry in tmp_path.iterdir()} == before | {"out"}
    out = load_file(tmp_path / "out" / "model.safetensors")
    expected = by_hand(folders, tmp_path)
    assert out.keys() == expected.keys() and all(torch.equal(out[name], expected[name]) for name in out)
    again = write_stages(tmp_path / "out" / "merge.yml", tmp_path / "again")
    repeated = load_file(again / "model.safetensors")
    assert all(torch.equal(out[name], repeated[name]) for name in out)
    assert str(tmp_path / ".") not in (tmp_path / "out" / "README.md").read_text()
    assert main([str(path), "--plan"]) == 0


def test_a_failed_stage_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    found = documents(folders)
    found[0]["base_model"] = str(tmp_path / "nowhere")
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump_all(found))
    before = {entry.name for entry in tmp_path.iterdir()}
    assert main([str(path), str(tmp_path / "out"), "--quiet"]) == 2
    assert {entry.name for entry in tmp_path.iterdir()} == before


def test_a_model_that_is_not_there_is_refused_before_anything_is_made(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = documents(folders)
    found[1]["models"]["b"]["path"] = "nowhere"  # beside one that is a result
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump_all(found))
    monkeypatch.setattr("merge.output.writer.write", lambda *_, **__: pytest.fail("something was made"))
    assert main([str(path), str(tmp_path / "out"), "--quiet"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_folder_that_is_there_is_filled_and_nothing_is_made_beside_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """As a mount point must be: what is between may be as large."""
    path, out = tmp_path / "merge.yml", tmp_path / "mount"
    path.write_text(yaml.safe_dump_all(documents(folders)))
    out.mkdir()
    before = {entry.name for entry in tmp_path.iterdir()}

    def see(*_: object) -> None:
        assert {entry.name for entry in tmp_path.iterdir()} == before and (out / ".stages.merge-part").is_dir()

    write_stages(path, out, progress=lambda name: nullcontext(see))
    assert (out / "config.json").is_file() and not list(out.glob(".*"))
    assert main([str(path), str(out), "--plan"]) == 2, "it is not empty any more"


LINEAR = {"method": "linear", "models": {"a": {"path": "ct"}}}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([LINEAR, LINEAR], "two merges have no name"),
        ([LINEAR | {"name": "x"}, LINEAR | {"name": "x"}], "two merges are named x"),
        ([LINEAR | {"name": "x"}, LINEAR], "no merge uses the result of x"),
        ([LINEAR | {"name": "../x"}, LINEAR], "merge 1: name: "),
        ([5, LINEAR], "merge 1: expected a merge recipe"),
        (
            [{**LINEAR, "name": "x", "base": "y"}, {**LINEAR, "name": "y", "base": "x"}, {**LINEAR, "base": "y"}],
            "need each other",
        ),
        ([LINEAR | {"name": "x", "base": "x"}, LINEAR | {"base": "x"}], "need each other: x <- x"),
        ([LINEAR | {"name": "x", "method": "no"}, LINEAR | {"base": "x"}], "merge x: method: "),
        ([LINEAR | {"name": "x", "base": "y"}, LINEAR | {"name": "y"}], "no merge uses the result of x"),
    ],
)
def test_what_cannot_be_made_is_refused(
    found: list[Any], words: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "merge.yml"
    path.write_text(yaml.dump_all(found))
    assert main([str(path), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said
    assert not list(tmp_path.glob("*out*"))
