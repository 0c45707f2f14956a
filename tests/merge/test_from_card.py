"""A merge made again from its card, and put on the hub of which this machine plays the part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import merge
from common.files import sha256
from merge.cli import main
from tests.fake_hub import READER, WRITER, FakeHub, Repository, serving
from tests.merge.conftest import VOCABULARY, recipe
from tests.merge.test_adapters import lora, on
from tests.merge.test_hub import COMMIT, cached

__all__ = ["cached"]


def written(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in folder.glob("*.safetensors")}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.fixture
def made(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A merge with draws, in two files, its card beside its models' folders."""
    one = recipe(folders, "dare_ties", {"ct": {"density": 0.5}, "sft": {"density": 0.3}}, seed=7)
    return merge.write(one, tmp_path / "merges" / "out", shard_bytes=40_000)


def test_the_same_bits(made: Path, tmp_path: Path) -> None:
    """From the card alone, models found in the folders above it."""
    (made / "merge.yml").unlink()
    assert main(["--from-card", str(made / "README.md"), str(tmp_path / "again")]) == 0
    assert written(tmp_path / "again") == written(made) and len(written(made)) > 1


def test_models_are_found_where_the_option_says(
    made: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders["ct"].rename(tmp_path / "elsewhere")
    arguments = ("--from-card", made / "README.md", tmp_path / "again")
    assert "--model ct=FOLDER" in refusal(capsys, *arguments)
    assert "the card has no such model" in refusal(capsys, *arguments, "--model", f"ct={tmp_path / 'elsewhere'}",
                                                   "--model", "x=y")  # fmt: skip
    assert main([*map(str, arguments), "--model", f"ct={tmp_path / 'elsewhere'}"]) == 0
    assert written(tmp_path / "again") == written(made)


def test_another_model_of_that_name_is_refused(
    made: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folders["sft"] / "model.safetensors", folders["ct"] / "model.safetensors")
    said = refusal(capsys, "--from-card", made / "README.md", tmp_path / "again")
    assert "ct/model.safetensors: its sha256 " in said and not (tmp_path / "again").exists()


def test_a_result_that_is_another_is_named(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = made / "README.md"
    card.write_text(card.read_text().replace("seed: 7", "seed: 8"))
    said = refusal(capsys, "--from-card", card, tmp_path / "again")
    assert "its sha256 " in said and (tmp_path / "again" / "config.json").is_file()


def test_with_an_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    out = merge.write(on(folders["ct"], lora(tmp_path / "lora")), tmp_path / "out")
    assert main(["--from-card", str(out / "README.md"), str(tmp_path / "again")]) == 0
    assert written(tmp_path / "again") == written(out)


def test_with_an_adapter_in_its_bases_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = lora(folders["ct"] / "lora")
    models = {"a": {"path": str(folders["ct"]), "adapter": str(adapter)}}
    base = {"method": "ties", "base": str(folders["ct"]), "exact": False}
    out = merge.write(merge.Recipe.from_dict(base | {"models": models}), tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "- read `lora/adapter_model.safetensors`: " in card and card.count("- read `ct/model.safetensors`: ") == 1
    arguments = ["--from-card", str(out / "README.md"), str(tmp_path / "again"), "--model", f"lora={adapter}"]
    assert main(arguments) == 0
    assert written(tmp_path / "again") == written(out)


def test_with_slices(folders: dict[str, Path], tmp_path: Path) -> None:
    slices = [{"layers": "0-1", "models": {"ct": {}, "sft": {}}}, {"layers": "1-2", "models": {"ct": {}, "sft": {}}}]
    out = merge.write(recipe(folders, "linear", {"ct": {}, "sft": {}}, slices=slices), tmp_path / "out")
    assert main(["--from-card", str(out / "README.md"), str(tmp_path / "again")]) == 0
    assert written(tmp_path / "again") == written(out)


def test_with_a_union_of_tokenizers(folders: dict[str, Path], tmp_path: Path) -> None:
    other = json.loads((folders["sft"] / "tokenizer.json").read_text())
    other["model"]["vocab"] = {f"w{i}" if i % 2 else f"anu{i}": i for i in range(VOCABULARY)}
    other["model"]["unk_token"] = "anu0"
    (folders["sft"] / "tokenizer.json").write_text(json.dumps(other))
    out = merge.write(recipe(folders, "ties", tokenizer="union"), tmp_path / "out")
    assert main(["--from-card", str(out / "README.md"), str(tmp_path / "again")]) == 0
    assert written(tmp_path / "again") == written(out)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()


@pytest.mark.usefixtures("cached")
def test_models_of_the_hub_by_their_commits(tmp_path: Path) -> None:
    models = {name: {"path": f"hub:me/{name}"} for name in ("ct", "sft")}
    out = merge.write(
        merge.Recipe.from_dict({"method": "task_arithmetic", "base": "hub:me/base", "models": models}), tmp_path / "out"
    )
    card = (out / "README.md").read_text()
    assert f"path: hub:me/ct@{COMMIT}" in card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["me/base", "me/ct", "me/sft"]
    assert main(["--from-card", str(out / "README.md"), str(tmp_path / "again")]) == 0
    assert written(tmp_path / "again") == written(out)


def test_a_card_of_local_models_names_no_base_that_the_hub_would_refuse(made: Path) -> None:
    assert "base_model" not in yaml.safe_load((made / "README.md").read_text().split("---")[1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"# A model", "has no recipe under '## How to make it again'"),
        (b"\xff", "not UTF-8"),
        (None, "no such file; expected the README.md of a merge"),
    ],
)
def test_no_card(text: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "README.md"
    if text is not None:
        card.write_bytes(text)
    assert words in refusal(capsys, "--from-card", card, tmp_path / "out")


def test_what_does_not_go_together(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = ("--from-card", made / "README.md")
    assert "--from-card: " in refusal(capsys, *card, "merge.yml", tmp_path / "out")
    assert "RECIPE: missing" in refusal(capsys)
    assert "--model: " in refusal(capsys, "merge.yml", "out", "--model", "a=b")
    plain = (made / "README.md").read_text().split("## Checksums")[0]
    (made / "README.md").write_text(plain)
    assert "has no checksums" in refusal(capsys, *card, tmp_path / "out")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(monkeypatch) as hub:
        yield hub


def test_a_push_is_made_when_the_merge_is_whole(
    folders: dict[str, Path], fake: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(folders, "ties").save(tmp_path / "merge.yml")
    out = tmp_path / "out"
    assert main([str(tmp_path / "merge.yml"), str(out), "--push", "me/merge", "--private"]) == 0
    assert "/me/merge\n" in capsys.readouterr().out
    pushed = fake.files("me/merge")
    assert fake.repositories["me/merge"].private and fake.messages == ["Merge by slackmerge"]
    assert pushed["model.safetensors"] == (out / "model.safetensors").read_bytes()
    assert pushed["README.md"] == (out / "README.md").read_bytes()
    assert set(pushed) == {path.name for path in out.iterdir()}
    assert not any(str(tmp_path).encode() in content for content in pushed.values())


def test_a_merge_that_fails_pushes_nothing(
    folders: dict[str, Path], fake: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(folders, "ties").save(tmp_path / "merge.yml")
    file = folders["ct"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert "damaged" in refusal(capsys, tmp_path / "merge.yml", tmp_path / "out", "--push", "me/merge")
    assert "GET /api/whoami-v2" in fake.asked and not fake.changes()


def test_pushes_that_are_refused(
    folders: dict[str, Path],
    fake: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tmp_path / "merge.yml", tmp_path / "out"
    recipe(folders, "ties").save(path)
    assert "expected owner/name" in refusal(capsys, path, out, "--push", "merge")
    assert "--push: " in refusal(capsys, path, out, "--push", "me/merge", "--grid", "density=0.5,1")
    assert not fake.asked
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "this token may only read" in refusal(capsys, path, out, "--push", "me/merge")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    fake.repositories["me/other"] = Repository(private=False)
    fake.repositories["me/other"].branches["main"]["config.json"] = b"{}"
    said = refusal(capsys, path, out, "--push", "me/other")
    assert "me/other: holds other files already, got config.json." in said
    assert not out.exists() and not fake.changes(), "nothing is merged in vain"
    fake.broken = "/preupload/"
    said = refusal(capsys, path, out, "--push", "me/merge", "--private")
    assert f"the merge is whole; push it by `slackmerge push {out} me/merge --private`" in said
    assert (out / "config.json").is_file()
