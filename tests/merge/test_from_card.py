"""A merge made again from its card, and put on the hub by a client that is faked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import merge
from common.files import sha256
from merge.cli import main
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


class Hub:
    """What the hub's client is asked."""

    calls: list[tuple[str, Any]]

    def __init__(self) -> None:
        self.calls = []

    def whoami(self) -> None:
        self.calls.append(("whoami", None))

    def create_repo(self, repo: str, **options: Any) -> str:
        self.calls.append(("create_repo", (repo, options)))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(
            ("upload_folder", options | {"whole": (Path(options["folder_path"]) / "config.json").exists()})
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    client = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: client)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    return client


def test_a_push_is_made_when_the_merge_is_whole(
    folders: dict[str, Path], fake: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(folders, "ties").save(tmp_path / "merge.yml")
    assert main([str(tmp_path / "merge.yml"), str(tmp_path / "out"), "--push", "me/merge", "--private"]) == 0
    assert "https://huggingface.co/me/merge" in capsys.readouterr().out
    (_, _), (made, (repo, options)), (up, uploaded) = fake.calls
    assert (made, repo, options) == ("create_repo", "me/merge", {"private": True, "exist_ok": True})
    assert up == "upload_folder" and uploaded["whole"] and uploaded["repo_id"] == "me/merge"
    assert uploaded["folder_path"] == tmp_path / "out" and uploaded["ignore_patterns"] == ["merge.yml"]
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_a_merge_that_fails_pushes_nothing(
    folders: dict[str, Path], fake: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(folders, "ties").save(tmp_path / "merge.yml")
    file = folders["ct"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert "damaged" in refusal(capsys, tmp_path / "merge.yml", tmp_path / "out", "--push", "me/merge")
    assert [name for name, _ in fake.calls] == ["whoami"]


def test_pushes_that_are_refused(
    folders: dict[str, Path],
    fake: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import huggingface_hub

    path, out = tmp_path / "merge.yml", tmp_path / "out"
    recipe(folders, "ties").save(path)
    assert "expected owner/name" in refusal(capsys, path, out, "--push", "merge")
    assert "--push: " in refusal(capsys, path, out, "--push", "me/merge", "--grid", "density=0.5,1")
    with monkeypatch.context() as patched:
        patched.setattr(huggingface_hub, "get_token", lambda: None)
        assert "no token of the hub here; `hf auth login`" in refusal(capsys, path, out, "--push", "me/merge")
    assert not out.exists() and not fake.calls

    def broken(**_: Any) -> None:
        raise ConnectionError("gone\naway")

    monkeypatch.setattr(fake, "upload_folder", broken)
    said = refusal(capsys, path, out, "--push", "me/merge")
    assert f"the merge is whole; push it by `hf upload me/merge {out}" in said and (out / "config.json").is_file()
